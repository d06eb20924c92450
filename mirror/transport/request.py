"""What is asked of whom: the values that go into the transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from yarl import URL

from mirror.config import UpstreamSettings
from mirror.routing import UpstreamName


@dataclass(frozen=True, slots=True)
class Destination:
    """An upstream as configured. `settings` decide its TLS and where it may lead us; `name.entry` labels metrics."""

    name: UpstreamName
    url: URL
    settings: UpstreamSettings = field(compare=False, repr=False)

    @classmethod
    def of(cls, name: UpstreamName, settings: UpstreamSettings) -> Destination:
        """From settings whose `url` is filled in."""
        assert settings.url is not None
        return cls(name, URL(settings.url.rstrip("/"), encoded=True), settings)

    def at(self, path: str) -> URL:
        """The URL of a path below the upstream's own, which may have a prefix; `path` starts with a slash."""
        return URL(f"{self.url}{path}", encoded=True)


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an upstream, or to an address that it named.

    kind: a label for metrics
    authorization: leaves for the origin of `url` alone
    form: fields of a POST's body; redirects are not to be followed with one
    read: take in the whole body of a 2xx, at most that many bytes, as part of the try; None streams it
    follow: go where redirects lead; otherwise they are answers
    heeded: 4xx statuses that mean something even from a redirect's target; any other one is no answer
    led_by: the reason to refuse with if the upstream named `url` and should not have; None where the operator named it
    check_redirect: raises for a target that is not to be followed
    tries: at most so many
    """

    destination: Destination
    url: URL
    kind: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    read: int | None = None
    follow: bool = True
    heeded: frozenset[int] = frozenset()
    led_by: str | None = None
    check_redirect: Callable[[URL], None] | None = None
    tries: int = 4

    @property
    def asked(self) -> str:
        """What to call it in messages: method, host and path, without the query."""
        return f"{self.method} {self.url.raw_authority}{self.url.raw_path}"


def host_of(url: URL) -> str:
    """Host and port, the key of whatever is kept per host."""
    return f"{(url.raw_host or '').lower()}:{url.port}"
