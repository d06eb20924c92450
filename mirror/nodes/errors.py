"""What can be wrong with a node's files; each message names the file, what is wrong, and what to do."""

from __future__ import annotations


class NodeError(Exception):
    """The files could not be read or written: nothing that a change of them would mend."""


class Unusable(NodeError):
    """What was found, or asked for, cannot be worked with. Nothing was touched."""


class Foreign(NodeError):
    """Somebody else changed what we had written. It was left as it is, and what was there before is kept."""
