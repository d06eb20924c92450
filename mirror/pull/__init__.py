"""The policy of pulling: fresh, stale or asked again; held, joined or fetched; permitted or not."""

from mirror.pull.answers import BlobAnswer, Lasting, ManifestAnswer, Source
from mirror.pull.asking import Asker, ManifestAsker
from mirror.pull.blobs import BlobPuller
from mirror.pull.elsewhere import FarAsker, FarWitness, ListsElsewhere, silence_by_owner
from mirror.pull.lists import Following, Lists
from mirror.pull.manifests import ManifestPuller
from mirror.pull.permission import Permissions
from mirror.pull.referrers import ReferrersPuller
from mirror.pull.renewals import Renewals
from mirror.pull.tags import TagsPuller
from mirror.pull.witness import PROOFS, NearWitness, Witness

__all__ = [
    "PROOFS",
    "Asker",
    "BlobAnswer",
    "BlobPuller",
    "FarAsker",
    "FarWitness",
    "Following",
    "Lasting",
    "Lists",
    "ListsElsewhere",
    "ManifestAnswer",
    "ManifestAsker",
    "ManifestPuller",
    "NearWitness",
    "Permissions",
    "ReferrersPuller",
    "Renewals",
    "Source",
    "TagsPuller",
    "Witness",
    "silence_by_owner",
]
