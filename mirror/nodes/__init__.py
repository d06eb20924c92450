"""What a node's container runtime has to be told of a mirror: files that are written, and put back as they were."""

from mirror.nodes.errors import Foreign, NodeError, Unusable
from mirror.nodes.runtimes import RUNTIMES, Runtime, find_runtime
from mirror.nodes.wanted import Wanted, parse_mirror
from mirror.nodes.works import Outcome, apply, restore

__all__ = [
    "RUNTIMES",
    "Foreign",
    "NodeError",
    "Outcome",
    "Runtime",
    "Unusable",
    "Wanted",
    "apply",
    "find_runtime",
    "parse_mirror",
    "restore",
]
