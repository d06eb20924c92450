"""The policy of pulling: fresh, stale or asked again; held, joined or fetched; permitted or not."""

from mirror.pull.answers import BlobAnswer, ManifestAnswer, Source
from mirror.pull.asking import ManifestAsker
from mirror.pull.blobs import BlobPuller
from mirror.pull.manifests import ManifestPuller
from mirror.pull.permission import Permissions
from mirror.pull.renewals import Renewals

__all__ = [
    "BlobAnswer",
    "BlobPuller",
    "ManifestAnswer",
    "ManifestAsker",
    "ManifestPuller",
    "Permissions",
    "Renewals",
    "Source",
]
