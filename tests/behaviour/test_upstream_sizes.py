"""Whatever an upstream sends beside content is taken in up to a size, and no further."""

from __future__ import annotations

import pytest

from mirror.oci.errors import ManifestUnknown
from mirror.oci.reference import Tag
from tests.asking import StartAsking, failure, soon, start_asking
from tests.upstream import ANY, FakeRegistry, header, status

__all__ = ["start_asking"]

LATEST = Tag("latest")
MIB = 1 << 20


async def test_an_error_without_end_is_an_error(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """The status has said what matters: of a body that only explains it 64 KiB are read, then the connection goes."""
    upstream.fault(ANY, status(404, b" " * (64 * MIB)), kind="manifest")
    asking = start_asking(upstream.url)

    with pytest.raises(ManifestUnknown):
        await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))
    await upstream.until(lambda: upstream.in_flight == 0)
    assert upstream.select(kind="manifest")[0].bytes_sent < 32 * MIB


async def test_a_code_is_read_from_an_error_of_some_size(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Up to 64 KiB; behind more of it nobody looks."""
    asking = start_asking(upstream.url)
    codes = []
    for padding in (60 << 10, 70 << 10):
        body = b" " * padding + b'{"errors": [{"code": "NAME_UNKNOWN"}]}'
        rule = upstream.fault(ANY, status(404, body), kind="manifest")
        try:
            await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))
        except Exception as error:
            codes.append(getattr(error, "code", type(error).__name__))
        rule.remove()
    assert codes == ["NAME_UNKNOWN", "MANIFEST_UNKNOWN"]


@pytest.mark.parametrize("name", ["X-Whatever", "Location", "Link", "WWW-Authenticate"])
async def test_headers_have_an_end(upstream: FakeRegistry, start_asking: StartAsking, name: str) -> None:
    """60 KB of one are taken, since some redirects are as long; with 70 KB there is no answer."""
    image = upstream.add_image("team/app", "latest")
    asking = start_asking(upstream.url)
    rule = upstream.fault(ANY, header(name, "a" * 60_000), kind="manifest")
    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))
    assert body.content == image.manifest.content
    rule.remove()
    upstream.fault(ANY, header(name, "a" * 70_000), kind="manifest")
    assert (await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon(5)))).reason == "protocol"


async def test_headers_are_not_any_number(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """A hundred are taken, a thousand are no answer."""
    image = upstream.add_image("team/app", "latest")
    asking = start_asking(upstream.url)
    rules = [upstream.fault(ANY, header(f"X-{number}", "a"), kind="manifest") for number in range(100)]
    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))
    assert body.content == image.manifest.content
    rules += [upstream.fault(ANY, header(f"Y-{number}", "a"), kind="manifest") for number in range(900)]
    assert (await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon(5)))).reason == "protocol"
