"""The configuration as frozen values; the text under each key is the operator's documentation of it.

In code numbers are plain: bytes, bytes a second, seconds, fractions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    StrictBool,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mirror.config.fields import (
    Address,
    Count,
    Duration,
    EntryName,
    FilePath,
    Host,
    Listen,
    PositiveDuration,
    PositiveFraction,
    PositiveSize,
    ProxyNetwork,
    PublicUrl,
    Rate,
    Size,
    SizeOrShare,
    Url,
    Username,
    Workers,
)
from mirror.config.names import HUB, parse_entry
from mirror.config.units import Amount

INCONSISTENT = "inconsistent"
"""Type of the validation error whose message is a whole predicate about several keys."""


class _Section(BaseModel):
    """Frozen, and strict about keys; a section with nothing under it means its defaults."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        return {} if value is None else value


class Storage(_Section):
    """Where content is kept, and how much of it."""

    path: FilePath = Path("./data")
    """Directory of everything that is kept; made if it does not exist."""

    max_size: PositiveSize = 20 << 30
    """Most that all of `storage.path` may take: a size, in bytes where it has no unit."""

    low_watermark: PositiveFraction = 0.9
    """Share of `storage.max_size` down to which the least recently used blobs are evicted."""

    min_free: SizeOrShare = Amount(fraction=0.05)
    """Free space to leave on the file system of `storage.path`: a size, or a percentage of the file system."""

    scrub_rate: Rate = 10 << 20
    """Rate (bytes a second) at which all held blobs are hashed again, once a day at most, to find rot; 0 for never."""


class Timeouts(_Section):
    """How long to wait, in seconds of the monotonic clock; `min_rate` alone is bytes a second."""

    connect_address: PositiveDuration = 3.0
    """Duration of the longest wait for a connection to one address of an upstream."""

    connect: PositiveDuration = 6.0
    """Duration of the longest wait for a connection to an upstream, all its addresses together."""

    try_: Annotated[PositiveDuration, Field(validation_alias="try", serialization_alias="try")] = 5.0
    """Duration of the longest wait for an upstream's headers in one try."""

    first_byte: PositiveDuration = 12.0
    """Duration of the longest wait of one client request for upstreams: tokens, connections and tries together."""

    stale_after: PositiveDuration = 2.0
    """The same duration where an expired copy is in hand: it is served then, and the refresh goes on."""

    cold_head: PositiveDuration = 3.0
    """Duration of the longest wait for the headers of a HEAD or of a range of a blob that is not held."""

    stall: PositiveDuration = 10.0
    """Duration without a byte from an upstream after which a blob's download is resumed with a new request."""

    min_rate: Rate = 8 << 10
    """Rate (bytes a second) under which a blob's download is resumed with a new request; 0 for any rate.

    A client has to keep it, too, over `timeouts.client`, where the bytes come from an upstream at its own pace.
    """

    min_rate_window: PositiveDuration = 30.0
    """Duration over which `timeouts.min_rate` is measured."""

    no_progress: PositiveDuration = 60.0
    """Duration without progress, resumes included, after which a blob's download is given up."""

    client: PositiveDuration = 120.0
    """Duration without a byte taken after which a client is cut off."""

    request: PositiveDuration = 30.0
    """Duration from a request's first byte, or a client's connection, to the end of its headers; then it is cut off."""

    idle: PositiveDuration = 75.0
    """Duration without a request after which a client's connection is closed."""

    peer: PositiveDuration = 2.0
    """Duration of another worker's silence after which it is done without: its upstream is asked, and nothing kept."""


class Tls(_Section):
    """How the registry API is served over TLS; plain HTTP without a certificate."""

    certificate: FilePath | None = None
    """PEM file of the certificate that clients see, and its intermediates; read again on SIGHUP, and by `--watch`."""

    key: FilePath | None = None
    """PEM file of the certificate's private key, without a passphrase; the certificate's own file if not given."""

    client_ca: FilePath | None = None
    """PEM file of certificate authorities: only clients with a certificate of one of them are served."""

    minimum: Literal["1.2", "1.3"] = "1.2"
    """Oldest version of TLS that is spoken: 1.2 or 1.3."""


class UpstreamSettings(_Section):
    """How one registry, or each of those that a pattern stands for, is asked and trusted."""

    url: Url | None = None
    """URL of where the registry really is, if not `https://<name>`; not for patterns."""

    hosts: tuple[Host, ...] = ()
    """Names of ours (host for any port, or host:port) that mean this registry to those who call us by them."""

    username: Username | None = None
    """User name to log in with; needs a password."""

    password: Annotated[SecretStr | None, Field(min_length=1)] = None
    """Password or token to log in with; `password_file` keeps it out of this file."""

    password_file: FilePath | None = None
    """File that holds the password or token; read again when it changes."""

    docker_config: FilePath | None = None
    """Docker's config.json, whose `auths` have the login for this registry; read again when it changes."""

    tag_ttl: Duration | None = None
    """Duration for which a tag is served without asking whether it moved; the global `tag_ttl` if not given."""

    tag_ttls: Mapping[str, Duration] = Field(default_factory=lambda: MappingProxyType({}))
    """Durations in place of `tag_ttl` by pattern of tag, such as `v*` or `202?-*`; the first match counts."""

    stale_if_error: Duration = 7 * 86400.0
    """Duration after its TTL for which a tag is still served while the registry does not answer."""

    stale_while_revalidate: Duration = 0.0
    """Duration after its TTL for which a tag is served at once and refreshed behind; hides a push for one pull."""

    negative_ttl: Duration = 30.0
    """Duration for which the registry's answer that something does not exist is remembered."""

    link_ttl: Duration = 86400.0
    """Duration after which the registry is asked again whether a repository still holds some content."""

    ca_file: FilePath | None = None
    """PEM file of certificate authorities to trust for this registry, besides the system's."""

    insecure: StrictBool = False
    """Whether to accept any TLS certificate; for tests."""

    offline: StrictBool = False
    """Whether the registry is never asked: what is held is served, however old its tags; all else is an error (503)."""

    token_hosts: tuple[Host, ...] = ()
    """Hosts that may be sent the credentials for a token, besides those of the registry's own registrable domain."""

    allow_private: StrictBool = False
    """Whether a public registry may lead to a private address by a redirect or token realm."""

    max_downloads: Count | None = None
    """Most blobs that are downloaded from this registry at a time; a share of the global one if not given."""

    @field_serializer("tag_ttls", mode="wrap")
    def _thaw(self, value: Mapping[str, float], serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(dict(value))

    @field_validator("tag_ttls", mode="after")
    @classmethod
    def _freeze(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        return MappingProxyType(dict(value))

    @model_validator(mode="after")
    def _consistent(self) -> UpstreamSettings:
        has_password = self.password is not None or self.password_file is not None
        if self.password is not None and self.password_file is not None:
            raise PydanticCustomError(INCONSISTENT, "has both password and password_file; expected one of them")
        if self.username is not None and not has_password:
            raise PydanticCustomError(INCONSISTENT, "has a username alone; expected also password_file or password")
        if self.username is None and has_password:
            raise PydanticCustomError(INCONSISTENT, "has a password alone; expected also username")
        if self.docker_config is not None and (self.username is not None or has_password):
            raise PydanticCustomError(
                INCONSISTENT, "has both docker_config and username or password; expected one of them"
            )
        if self.stale_while_revalidate > self.stale_if_error:
            raise PydanticCustomError(
                INCONSISTENT, "has stale_while_revalidate above stale_if_error; expected it to be at most that"
            )
        return self


class Settings(_Section):
    """Everything that an operator can set."""

    listen: Listen = Address("127.0.0.1", 5000)
    """Address of the registry API, as host:port."""

    admin_listen: Listen = Address("127.0.0.1", 5001)
    """Address of /livez, /readyz and /metrics, as host:port."""

    workers: Workers = 1
    """Processes that serve: 1 is one process, 0 one for each CPU. One is plenty on plain HTTP."""

    tls: Tls = Tls()
    """How the registry API is served over TLS; plain HTTP without a certificate."""

    public_url: PublicUrl | None = None
    """URL by which clients know this mirror behind a proxy; links that we give begin with its path, requests may."""

    trusted_proxies: tuple[ProxyNetwork, ...] = ()
    """IP networks of the proxies whose X-Forwarded-For, X-Forwarded-Host and X-Forwarded-Prefix are believed."""

    storage: Storage = Storage()
    """Where content is kept, and how much of it."""

    timeouts: Timeouts = Timeouts()
    """How long to wait."""

    max_connections: Count = 10_000
    """Most connections of clients; fewer where the limit on open files does not allow as many."""

    max_connections_per_client: Count = 1000
    """Most connections from one IP address, unless it is one of `trusted_proxies`."""

    max_downloads: Count = 64
    """Most blobs that are downloaded at the same time; four times as many wait, for `timeouts.first_byte` at most."""

    abandon_below: Size = 1 << 20
    """Size (bytes arrived) under which a download stops once no client wants it; larger ones are finished."""

    shutdown_grace: Duration = 60.0
    """Duration that running transfers have to finish in on SIGTERM."""

    drain_delay: Duration = 0.0
    """Duration on SIGTERM between saying "not ready" and closing the listener, for load balancers to notice."""

    tag_ttl: Duration = 300.0
    """Duration for which a tag is served without asking its registry whether it moved."""

    default_upstream: Host = HUB
    """Registry (host or host:port) of requests that name none."""

    upstreams: Mapping[EntryName, UpstreamSettings] = Field(default_factory=lambda: MappingProxyType({}))
    """Registries by host, host:port or pattern (`*` is one DNS label). Well-known public ones need no entry."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged: debug, info, warning or error."""

    @field_serializer("upstreams", mode="wrap")
    def _thaw(self, value: Mapping[str, UpstreamSettings], serialize: SerializerFunctionWrapHandler) -> Any:
        return serialize(dict(value))

    @field_validator("upstreams", mode="before")
    @classmethod
    def _no_upstreams(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("upstreams", mode="after")
    @classmethod
    def _canonical(cls, value: Mapping[str, UpstreamSettings]) -> Mapping[str, UpstreamSettings]:
        upstreams: dict[str, UpstreamSettings] = {}
        for key, upstream in value.items():
            entry = parse_entry(key)
            if entry in upstreams:
                raise PydanticCustomError(INCONSISTENT, "names Docker Hub more than once; expected docker.io alone")
            if "*" in entry and upstream.url is not None:
                raise PydanticCustomError(
                    INCONSISTENT, "gives one url to the many registries of {entry}; expected none", {"entry": entry}
                )
            if "*" in entry and upstream.hosts:
                raise PydanticCustomError(
                    INCONSISTENT, "gives hosts to the many registries of {entry}; expected none", {"entry": entry}
                )
            upstreams[entry] = upstream
        return MappingProxyType(upstreams)
