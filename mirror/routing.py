"""Which upstream and repository a request means; pure, and bounded whatever clients send."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NoReturn
from urllib.parse import urlsplit

from mirror.config.models import Settings, UpstreamSettings
from mirror.config.names import HUB, find_entry, parse_host, without_port
from mirror.config.wellknown import WELL_KNOWN, upstream_settings
from mirror.oci.digest import Digest
from mirror.oci.errors import MirrorError, NameInvalid, Unsupported, UpstreamRefused
from mirror.oci.path import ParsedPath, RequestTarget, parse_path, read_target
from mirror.oci.reference import Reference, parse_reference, parse_repository
from mirror.oci.referrers import is_attached_tag

_REMEMBERED = 4096
_SHORT = 768
"""Characters of what is remembered: enough for every pull that can succeed."""
_SOON = 30.0
"""Seconds for which lists, and tags that are named for a digest, are good at most: who attaches a signature or pushes a
tag looks for it at once."""


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
class Asked:
    """What a request asks for, before anything of it is refused."""

    target: RequestTarget
    is_api: bool
    """Whether this is `/v2/…`, under a path of ours."""
    is_version: bool
    """Whether this is `/v2/` itself."""
    pull: ParsedPath | None
    """What is to be pulled; None for every other path."""
    prefix: str
    """What the client has to put before `/v2/` to ask again, decoded."""
    upstream: UpstreamName | None
    """The registry that `ns=` or the path before `/v2/` names; None also where that is refused."""
    is_refused: bool
    """Whether it is."""
    namespace: str | None
    """The `ns=` that counts, where it names a known registry."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A pull that makes sense, read to its end: `reference` is None for lists of tags."""

    asked: Asked
    pull: ParsedPath
    target: Target
    reference: Reference | None


class Router:
    """Chooses upstreams by the configuration it was made with."""

    def __init__(self, settings: Settings) -> None:
        self._upstreams = settings.upstreams
        self._default = settings.default_upstream
        self._tag_ttl = settings.tag_ttl
        self._base = urlsplit(settings.public_url).path if settings.public_url else ""
        self._hosts = {host: entry for entry, upstream in settings.upstreams.items() for host in upstream.hosts}
        self._find = lru_cache(_REMEMBERED)(self._look_up)
        self._settings = lru_cache(_REMEMBERED)(self._merge)
        self._read = lru_cache(_REMEMBERED)(self._interpret)
        self._targets = lru_cache(_REMEMBERED)(self._name)
        self._called = lru_cache(_REMEMBERED)(self._look_up_called)
        self._wanted = lru_cache(_REMEMBERED)(self._want)

    @property
    def has_aliases(self) -> bool:
        """Whether what a client calls us can matter."""
        return bool(self._hosts)

    def wanted(self, raw: str, base: str, host: str | None, proxied: str | None = None) -> Wanted | None:
        """All that a request target means, in one look-up where it was asked before.

        None where any part of it is refused, and for what is no pull: `read`, `choose` and `target` say which. `host`
        is the Host header, `proxied` what a trusted proxy says in its place.
        """
        if not self._hosts:
            host = proxied = None
        if len(raw) > _SHORT or len(host or "") > _SHORT or len(proxied or "") > _SHORT:
            return self._want(raw, base, host, proxied)
        return self._wanted(raw, base, host, proxied)

    def read(self, raw: str, base: str = "") -> Asked:
        """Reads a raw request target; `base` is the path before it that a proxy has taken off. Raises nothing."""
        return self._read(raw, base) if len(raw) <= _SHORT else self._interpret(raw, base)

    def choose(self, asked: Asked, host: str | None) -> UpstreamName | None:
        """The registry that a request names other than by its repository; `host` is what its client calls us.

        The order is an interface: `ns=`, a path before `/v2/`, the host, and after them in `target` the first component
        of the repository's name, the default. Raises UpstreamRefused for a registry that is neither configured nor well
        known, NameInvalid for an `ns=` that is none, Unsupported where path and `ns=` disagree.
        """
        if asked.is_refused:
            return self._by_request_target(asked.target)
        if asked.upstream is None and host is not None and self._hosts and len(host) <= _SHORT:
            return self._called(host)
        return asked.upstream

    def target(self, name: str, chosen: UpstreamName | None) -> Target:
        """What the repository `name` of a request means that has `chosen` this registry, or none.

        Raises UpstreamRefused for a registry that is neither configured nor well known, and NameInvalid.
        """
        return self._targets(name, chosen) if len(name) <= _SHORT else self._name(name, chosen)

    def named(self, host: str, repository: str) -> Target:
        """The target that another worker names. Raises UpstreamRefused where it is none by our configuration."""
        return Target(self._find(host) or _refuse(host), repository)

    def resolve(self, name: str, ns: str | None = None) -> Target:
        """The target of `name`, `ns` being its query parameter of that name. Raises as `choose` and `target` do."""
        return self.target(name, None if ns is None else self._by_ns((ns,)))

    def settings(self, upstream: UpstreamName) -> UpstreamSettings:
        """What is configured for `upstream`, over what is built in for it; `url` is always filled in."""
        return self._settings(upstream)

    def tag_ttl(self, upstream: UpstreamName, tag: str) -> float:
        """Seconds for which `tag` is taken as unmoved: the first matching pattern's, the upstream's, the default.

        Without a pattern that matches, signatures and the like (`sha256-<hex>.sig`) are taken so for 30 s at most.
        """
        settings = self.settings(upstream)
        for pattern, ttl in settings.tag_ttls.items():
            if fnmatchcase(tag, pattern):
                return ttl
        ttl = self._tag_ttl if settings.tag_ttl is None else settings.tag_ttl
        return min(ttl, _SOON) if is_attached_tag(tag) else ttl

    def list_ttl(self, upstream: UpstreamName) -> float:
        """Seconds for which lists of tags and of referrers are taken as complete: the `tag_ttl`, at most 30."""
        ttl = self.settings(upstream).tag_ttl
        return min(self._tag_ttl if ttl is None else ttl, _SOON)

    def _want(self, raw: str, base: str, host: str | None, proxied: str | None) -> Wanted | None:
        asked = self.read(raw, base)
        if asked.pull is None:
            return None
        try:
            chosen = self.choose(asked, proxied or asked.target.authority or host)
            return Wanted(asked, asked.pull, self.target(asked.pull.name, chosen), read_reference(asked.pull))
        except MirrorError:
            return None

    def _interpret(self, raw: str, base: str) -> Asked:
        outer = base or self._base
        read = read_target(raw, (outer, self._base))
        is_api = read.api is not None and (not read.before or self._by_path(read.before) is not None)
        upstream, is_refused = None, False
        namespace = read.namespaces[0] if read.namespaces else None
        try:
            upstream = self._by_request_target(read)
        except MirrorError as error:
            is_refused = True
            if not isinstance(error, Unsupported):
                namespace = None
        return Asked(
            target=read,
            is_api=is_api,
            is_version=is_api and read.api in ("/v2", "/v2/"),
            pull=parse_path(read.api) if is_api and read.api is not None else None,
            prefix=outer + read.before if is_api else outer,
            upstream=upstream,
            is_refused=is_refused,
            namespace=namespace,
        )

    def _by_request_target(self, target: RequestTarget) -> UpstreamName | None:
        by_path = self._by_path(target.before)
        if not target.namespaces:
            return by_path
        by_ns = self._by_ns(target.namespaces)
        if by_path not in (None, by_ns):
            raise Unsupported(f"the path is that of {by_path}, but ns is {str(by_ns)!r}")
        return by_ns

    def _name(self, name: str, chosen: UpstreamName | None) -> Target:
        first, slash, rest = name.partition("/")
        named = self._known(first) if slash else None
        if chosen is None and named is None:
            if slash and self._names_a_host(first):
                _refuse(first)
            chosen = self._find(self._default) or _refuse(self._default)
        upstream = chosen or named
        assert upstream is not None
        # BuildKit, k3s and containerd's override_path say it twice.
        repository = rest if named == upstream else name
        if upstream.host == HUB and "/" not in repository:
            repository = f"library/{repository}"
        return Target(upstream, parse_repository(repository))

    def _by_ns(self, values: tuple[str, ...]) -> UpstreamName:
        try:
            host, *others = {parse_host(value) for value in values}
        except ValueError:
            found = ", ".join(repr(value[:160]) for value in values[:2])
            raise NameInvalid(f"ns is not a registry's host[:port]: {found}") from None
        if others:
            raise NameInvalid("ns is there more than once, for different registries")
        return self._find(host) or _refuse(host)

    def _look_up_called(self, host: str) -> UpstreamName | None:
        """The registry for which `host`, a Host header, is an alias."""
        name, colon, port = host.rpartition(":")
        # A name that ends with a dot is the same name, only complete.
        host = f"{name.removesuffix('.')}:{port}" if colon else host.removesuffix(".")
        try:
            called = parse_host(host)
        except ValueError:
            return None
        entry = self._hosts.get(called) or self._hosts.get(without_port(called))
        return UpstreamName(entry, entry) if entry is not None else None

    def _by_path(self, before: str) -> UpstreamName | None:
        return self._known(before.removeprefix("/")) if before else None

    def _known(self, text: str) -> UpstreamName | None:
        try:
            return self._find(parse_host(text))
        except ValueError:
            return None

    def _names_a_host(self, first: str) -> bool:
        """Whether a first component can only mean a registry: Docker Hub has no namespace with a dot in it."""
        try:
            parse_host(first)
        except ValueError:
            return False
        return ":" in first or (self._default == HUB and ("." in first or first == "localhost"))

    def _look_up(self, host: str) -> UpstreamName | None:
        entry = find_entry(host, self._upstreams, WELL_KNOWN)
        return None if entry is None else UpstreamName(host, entry)

    def _merge(self, upstream: UpstreamName) -> UpstreamSettings:
        return upstream_settings(upstream.host, self._upstreams.get(upstream.entry))


def read_reference(pull: ParsedPath) -> Reference | None:
    """The tag or digest that is asked for, or None for a list of tags. Raises as parse_reference and Digest.parse."""
    if pull.kind == "tags":
        return None
    return parse_reference(pull.reference) if pull.kind == "manifest" else Digest.parse(pull.reference)


def _refuse(host: str) -> NoReturn:
    raise UpstreamRefused(f"the registry {host[:160]!r} is neither configured here nor a well-known public one")
