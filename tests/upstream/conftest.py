"""The fake's own tests use the fixtures that it offers to others."""

from tests.upstream.fixtures import start_upstream, upstream

__all__ = ["start_upstream", "upstream"]
