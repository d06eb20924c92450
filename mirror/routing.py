"""Which upstream and repository a request means; pure, and bounded whatever clients send."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final, Literal, NoReturn

from mirror.config.models import Settings, UpstreamSettings
from mirror.config.names import HUB, find_entry, parse_host
from mirror.config.wellknown import WELL_KNOWN, upstream_settings
from mirror.oci.errors import NameInvalid, UpstreamRefused
from mirror.oci.reference import parse_repository

Kind = Literal["manifest", "blob", "tags", "referrers"]

_KINDS: Final[dict[str, Kind]] = {"manifests": "manifest", "blobs": "blob", "referrers": "referrers"}
_PREFIX = "/v2/"
_HOSTS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class UpstreamName:
    """A registry: its canonical `host[:port]`, and the `entry` (configured key or pattern) that it falls under.

    Keys of what we hold and of everything kept per registry use `host`; settings and metric labels come from `entry`.
    """

    host: str
    entry: str

    def __str__(self) -> str:
        return self.host


@dataclass(frozen=True, slots=True)
class Target:
    """A repository at an upstream, named as that upstream names it."""

    upstream: UpstreamName
    repository: str

    def __str__(self) -> str:
        return f"{self.upstream}/{self.repository}"


@dataclass(frozen=True, slots=True)
class ParsedPath:
    """A pull request's path: `name` as the client wrote it, prefix included; `reference` is empty for tags."""

    kind: Kind
    name: str
    reference: str


def parse_path(raw_path: str) -> ParsedPath | None:
    """Reads `/v2/<name>/(manifests|blobs|referrers)/<reference>` or `/v2/<name>/tags/list`, percent-decoded before.

    The last such part of the path counts, since names may contain `/manifests/` themselves. None for other paths.
    """
    if not raw_path.startswith(_PREFIX):
        return None
    rest, _, reference = raw_path[len(_PREFIX) :].rpartition("/")
    name, _, part = rest.rpartition("/")
    if not name or not reference:
        return None
    if part == "tags" and reference == "list":
        return ParsedPath("tags", name, "")
    kind = _KINDS.get(part)
    return ParsedPath(kind, name, reference) if kind else None


class Router:
    """Chooses upstreams by the configuration it was made with."""

    def __init__(self, settings: Settings) -> None:
        self._upstreams = settings.upstreams
        self._default = settings.default_upstream
        self._tag_ttl = settings.tag_ttl
        self._find = lru_cache(_HOSTS_REMEMBERED)(self._look_up)
        self._settings = lru_cache(_HOSTS_REMEMBERED)(self._merge)

    def resolve(self, name: str, ns: str | None) -> Target:
        """What the repository `name` of a request means, `ns` being its query parameter of that name.

        Raises UpstreamRefused for a registry that is neither configured nor well known, and NameInvalid.
        """
        upstream, repository = self._choose(name, ns)
        if upstream.host == HUB and "/" not in repository:
            repository = f"library/{repository}"
        return Target(upstream, parse_repository(repository))

    def settings(self, upstream: UpstreamName) -> UpstreamSettings:
        """What is configured for `upstream`, over what is built in for it; `url` is always filled in."""
        return self._settings(upstream)

    def tag_ttl(self, upstream: UpstreamName, tag: str) -> float:
        """Seconds for which `tag` is taken as unmoved: the first matching pattern's, the upstream's, the default."""
        settings = self.settings(upstream)
        for pattern, ttl in settings.tag_ttls.items():
            if fnmatchcase(tag, pattern):
                return ttl
        return self._tag_ttl if settings.tag_ttl is None else settings.tag_ttl

    def _choose(self, name: str, ns: str | None) -> tuple[UpstreamName, str]:
        """The upstream, and the rest of `name`. The order is an interface: ns, then prefix, then the default."""
        first, slash, rest = name.partition("/")
        named = self._known(first) if slash else None
        if ns is not None:
            upstream = self._by_ns(ns)
            # BuildKit, k3s and containerd's override_path send both forms at once.
            return upstream, rest if named == upstream else name
        if named is not None:
            return named, rest
        if slash and self._names_a_host(first):
            _refuse(first)
        return self._find(self._default) or _refuse(self._default), name

    def _by_ns(self, ns: str) -> UpstreamName:
        try:
            host = parse_host(ns)
        except ValueError:
            raise NameInvalid(f"ns is not a registry's host[:port]: {ns[:160]!r}") from None
        return self._find(host) or _refuse(host)

    def _known(self, text: str) -> UpstreamName | None:
        try:
            return self._find(parse_host(text))
        except ValueError:
            return None

    def _names_a_host(self, first: str) -> bool:
        """Whether a first component can only mean a registry: Docker Hub has no namespace with a dot in it."""
        return ":" in first or (self._default == HUB and ("." in first or first == "localhost"))

    def _look_up(self, host: str) -> UpstreamName | None:
        entry = find_entry(host, self._upstreams, WELL_KNOWN)
        return None if entry is None else UpstreamName(host, entry)

    def _merge(self, upstream: UpstreamName) -> UpstreamSettings:
        return upstream_settings(upstream.host, self._upstreams.get(upstream.entry))


def _refuse(host: str) -> NoReturn:
    raise UpstreamRefused(f"the registry {host[:160]!r} is neither configured here nor a well-known public one")
