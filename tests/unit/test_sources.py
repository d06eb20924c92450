"""Whom a download asks: in order of joining, without those that said no, and not without end."""

from __future__ import annotations

from mirror.download.sources import Sources
from mirror.oci.errors import BlobUnknown, UpstreamTimeout
from mirror.routing import Target, UpstreamName


def target(repository: str) -> Target:
    """A repository of docker.io."""
    return Target(UpstreamName("docker.io", "docker.io"), repository)


A, B, C = target("a"), target("b"), target("c")


def test_sources_are_asked_in_the_order_in_which_they_joined() -> None:
    """Each once."""
    sources = Sources(A)
    for joined in (B, A, C, B):
        sources.add(joined)

    assert sources.all == (A, B, C)
    assert B in sources
    assert sources.joined_at(A) <= sources.joined_at(C)


def test_a_no_ends_a_source_and_is_remembered() -> None:
    """A failure does not end it, but is what its readers hear."""
    sources = Sources(A)
    sources.add(B)
    no, failure = BlobUnknown("gone"), UpstreamTimeout("slow")

    sources.refused(A, no)
    sources.failed(B, failure)

    assert sources.all == (B,)
    assert (sources.said(A), sources.said(B), sources.said(C)) == (no, failure, None)


def test_wrong_bytes_send_a_source_to_the_end() -> None:
    """It is asked again if there is no other."""
    sources = Sources(A)
    sources.rotate()
    assert list(sources.all) == [A]

    sources.add(B)
    sources.rotate()
    assert list(sources.all) == [B, A]

    for source in (A, B):
        sources.refused(source, BlobUnknown("gone"))
    sources.rotate()
    assert list(sources.all) == []


def test_no_download_asks_thousands() -> None:
    """Whoever names one repository after the other makes us ask no more than a few of them."""
    sources = Sources(A)
    for number in range(1000):
        sources.add(target(f"r{number}"))
        if number % 3 == 0:
            sources.refused(target(f"r{number}"), BlobUnknown("gone"))

    assert len(sources.all) < 33
