"""Public registries that need no configuration, with what pulling from each takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mirror.config.models import UpstreamSettings
from mirror.config.names import HUB, best_pattern

_REDHAT = UpstreamSettings(token_hosts=("sso.redhat.com", "registry.redhat.io"))

WELL_KNOWN: Mapping[str, UpstreamSettings] = MappingProxyType(
    {
        HUB: UpstreamSettings(url="https://registry-1.docker.io"),
        "quay.io": UpstreamSettings(),
        "ghcr.io": UpstreamSettings(),
        "gcr.io": UpstreamSettings(),
        "*.gcr.io": UpstreamSettings(),
        "*.pkg.dev": UpstreamSettings(),
        "registry.k8s.io": UpstreamSettings(),
        "mcr.microsoft.com": UpstreamSettings(),
        "public.ecr.aws": UpstreamSettings(),
        "nvcr.io": UpstreamSettings(),
        "registry.gitlab.com": UpstreamSettings(token_hosts=("gitlab.com",)),
        "registry.access.redhat.com": _REDHAT,
        "registry.redhat.io": _REDHAT,
        "cgr.dev": UpstreamSettings(),
        # A vanity name in front of GHCR, whose token endpoint its challenges name.
        "lscr.io": UpstreamSettings(token_hosts=("ghcr.io",)),
        "docker.elastic.co": UpstreamSettings(),
        "registry.suse.com": UpstreamSettings(),
        "container-registry.oracle.com": UpstreamSettings(),
        "icr.io": UpstreamSettings(),
        "registry.fedoraproject.org": UpstreamSettings(),
        # Docker's own; its accounts are Docker Hub's.
        "dhi.io": UpstreamSettings(token_hosts=("auth.docker.io",)),
        "xpkg.upbound.io": UpstreamSettings(),
    }
)


def upstream_settings(host: str, configured: UpstreamSettings | None) -> UpstreamSettings:
    """What is configured for `host` (canonical), over what is built in for it; `url` is always filled in."""
    built_in = WELL_KNOWN.get(host) or WELL_KNOWN.get(best_pattern(WELL_KNOWN, host) or "") or UpstreamSettings()
    chosen = built_in
    if configured is not None:
        given = {name: getattr(configured, name) for name in configured.model_fields_set}
        chosen = built_in.model_copy(update=given)
    return chosen if chosen.url else chosen.model_copy(update={"url": f"https://{host}"})
