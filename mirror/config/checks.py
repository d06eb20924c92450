"""What must hold between keys, and between the configuration and the files that it names."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from mirror.config.certificates import certificate_ends, wrong_certificate, wrong_key
from mirror.config.docker_config import DockerConfig
from mirror.config.fields import Address
from mirror.config.mistakes import dotted, shown
from mirror.config.models import Settings, Timeouts, Tls
from mirror.config.names import HUB, find_entry, without_port
from mirror.config.source import KeyPath
from mirror.config.units import format_duration
from mirror.config.wellknown import WELL_KNOWN

_ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - to recognise them, not to listen there


def check(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Yields the key and a predicate for each mistake; reads the files that are named."""
    if _collide(settings.listen, settings.admin_listen):
        yield ("admin_listen",), f"is {settings.admin_listen}, taken by listen; expected another port"
    if find_entry(settings.default_upstream, settings.upstreams, WELL_KNOWN) is None:
        found = shown(settings.default_upstream)
        yield ("default_upstream",), f"is {found}; expected a registry in upstreams or a well-known public one"
    yield from _check_tls(settings.tls)
    yield from _check_timeouts(settings.timeouts)
    yield from _check_hosts(settings)
    for entry, upstream in settings.upstreams.items():
        if upstream.password_file is not None and (trouble := _unreadable(upstream.password_file)):
            yield ("upstreams", entry, "password_file"), trouble
        if upstream.docker_config is not None and (trouble := _wrong_login(upstream.docker_config, entry)):
            yield ("upstreams", entry, "docker_config"), trouble
        if upstream.ca_file is not None and (trouble := _unreadable(upstream.ca_file) or _no_pem(upstream.ca_file)):
            yield ("upstreams", entry, "ca_file"), trouble


def warnings(settings: Settings) -> list[str]:
    """What can be used, but is hardly meant, of a configuration that has passed; reads the files that are named."""
    certificate = settings.tls.certificate
    if certificate is None or (ends := certificate_ends(certificate)) > time.time():
        return []
    when = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return [f"tls.certificate is {shown(certificate)}, which expired on {when}"]


def _check_tls(tls: Tls) -> Iterator[tuple[KeyPath, str]]:
    certificate, key = tls.certificate, tls.key or tls.certificate
    for name in ("key", "client_ca"):
        if certificate is None and getattr(tls, name) is not None:
            yield ("tls", name), f"is {shown(getattr(tls, name))}, without a certificate; expected tls.certificate, too"
    if certificate is None or key is None:
        return
    if trouble := _unreadable(certificate) or _wrong(certificate, wrong_certificate(certificate), "certificates"):
        yield ("tls", "certificate"), trouble
    elif trouble := _unreadable(key) or _wrong(key, wrong_key(key, certificate), "the certificate's key, unencrypted"):
        yield ("tls", "key" if tls.key is not None else "certificate"), trouble
    if tls.client_ca is not None and (trouble := _unreadable(tls.client_ca) or _no_pem(tls.client_ca)):
        yield ("tls", "client_ca"), trouble


def _wrong(path: Path, what: str | None, expected: str) -> str | None:
    return None if what is None else f"is {shown(path)}, which {what}; expected a PEM file with {expected}"


def _check_timeouts(timeouts: Timeouts) -> Iterator[tuple[KeyPath, str]]:
    if timeouts.stale_after > timeouts.first_byte:
        limits = format_duration(timeouts.stale_after), format_duration(timeouts.first_byte)
        yield ("timeouts", "stale_after"), "is {}; expected at most first_byte, which is {}".format(*limits)


def _check_hosts(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    owners: dict[str, str] = {}
    for entry, upstream in settings.upstreams.items():
        path = ("upstreams", entry, "hosts")
        for host in upstream.hosts:
            owner = owners.setdefault(host, entry)
            named = HUB if without_port(host) == HUB else host
            if named != entry and (named in WELL_KNOWN or named in settings.upstreams):
                yield path, f"has {shown(host)}, the name of another registry; expected names of the mirror"
            elif owner != entry:
                other = dotted(("upstreams", owner, "hosts"))
                yield path, f"has {shown(host)}, which {other} has too; expected it in one of them"
            elif upstream.hosts.count(host) > 1:
                yield path, f"has {shown(host)} more than once; expected it once"
                break


def _collide(one: Address, other: Address) -> bool:
    same_host = one.host == other.host or one.host in _ANY_HOST or other.host in _ANY_HOST
    return same_host and one.port == other.port and one.port != 0


def _unreadable(path: Path) -> str | None:
    try:
        # A pipe or device could block us here, and cannot be read again later.
        if path.exists() and not path.is_file():
            return f"is {shown(path)}, which is not a file; expected a readable file"
        with path.open("rb") as file:
            file.read(1)
    except OSError as exc:
        return f"is {shown(path)}, which cannot be read ({exc.strerror}); expected a readable file"
    return None


def _wrong_login(path: Path, entry: str) -> str | None:
    if trouble := _unreadable(path):
        return trouble
    try:
        config = DockerConfig.parse(path.read_bytes())
    except (ValueError, OSError) as error:
        return f"is {shown(path)}, which {error}; expected what `docker login` writes"
    if "*" in entry or config.login(entry) is not None:
        return None
    if (helper := config.helper(entry)) is not None:
        return f"is {shown(path)}, which leaves the login to docker-credential-{helper}; expected it in auths"
    return f"is {shown(path)}, which has no login for {entry}; expected it in auths"


def _no_pem(path: Path) -> str | None:
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError):
        return f"is {shown(path)}, which holds no certificate; expected a PEM file"
    return None
