"""The policy of pulling: fresh, stale or asked again; held, joined or fetched; permitted or not."""

from mirror.pull.answers import BlobAnswer, Lasting, ManifestAnswer, Source
from mirror.pull.asking import ManifestAsker
from mirror.pull.blobs import BlobPuller
from mirror.pull.lists import Following, Lists
from mirror.pull.manifests import ManifestPuller
from mirror.pull.permission import PROOFS, Permissions
from mirror.pull.referrers import ReferrersPuller
from mirror.pull.renewals import Renewals
from mirror.pull.tags import TagsPuller

__all__ = [
    "PROOFS",
    "BlobAnswer",
    "BlobPuller",
    "Following",
    "Lasting",
    "Lists",
    "ManifestAnswer",
    "ManifestAsker",
    "ManifestPuller",
    "Permissions",
    "ReferrersPuller",
    "Renewals",
    "Source",
    "TagsPuller",
]
