"""What a node is to be told: where the mirror is, for which registries, and whom to trust."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from mirror.config.names import parse_host

WRITTEN_BY = "written by `mirror node-config apply`; `mirror node-config restore` puts back what was here"
"""A comment for the first line of what we write."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """`mirror` is a URL without a path; no `registries` means all that the runtime can send to a mirror.

    `ca` is the PEM text of those who may sign the mirror's certificate, None where the node trusts them already.
    """

    mirror: str
    registries: tuple[str, ...] = ()
    ca: str | None = None
    add_config_path: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the mirror speaks plain HTTP."""
        return self.mirror.startswith("http:")

    @property
    def host(self) -> str:
        """The mirror's `host[:port]`."""
        return urlsplit(self.mirror).netloc


def parse_mirror(text: str) -> str:
    """The canonical URL of a mirror. Raises ValueError, whose message is what was expected."""
    expected = "the mirror's URL, as http://mirror.example:5000 or https://mirror.example"
    try:
        url = urlsplit(text)
        host = parse_host(url.netloc)
    except ValueError:
        raise ValueError(expected) from None
    if url.scheme not in ("http", "https") or url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(expected)
    return f"{url.scheme}://{host}"
