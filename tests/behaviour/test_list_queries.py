"""Queries of lists on the wire: whatever stands in them, an answer in our own words and headers of our own."""

from __future__ import annotations

import json

import pytest

from tests.harness import RunningMirror
from tests.raw import RawClient
from tests.upstream import FakeRegistry

VALUES = [
    "",
    "%ff",
    "%ed%a0%80",
    "%00",
    "%0d%0aX-Evil:%20y",
    "%d9%a3",
    "a%3E%3B%20rel=%22x",
    "+",
    "x" * 5000,
    "1&n=2",
    "1;x",
]


@pytest.mark.parametrize("parameter", ["n", "last", "next", "artifactType", "other"])
async def test_odd_queries(mirror: RunningMirror, upstream: FakeRegistry, parameter: str) -> None:
    """They are understood, ignored or a 400; never a fault of ours, and never copied into a header as they are."""
    upstream.referrers = True
    image = upstream.add_image("library/demo", "1")
    for number in range(3):
        upstream.tag("library/demo", f"t{number}", image)
        upstream.add_image("library/demo", subject=image.manifest, labels={"number": str(number)})

    async with await RawClient.connect(mirror.app.port) as client:
        for path in ("tags/list", f"referrers/{image.digest}"):
            for value in VALUES:
                await client.ask(f"/v2/demo/{path}?{parameter}={value}&n=2&artifactType=a")
                head, body = await client.answer()
                assert head.status in (200, 400), (path, value)
                assert "X-Evil" not in head.headers
                assert head.headers.get("Link", "").count("<") <= 1
                assert json.loads(body).keys() <= {"errors", "name", "tags", "schemaVersion", "mediaType", "manifests"}
    assert not [seen for seen in upstream.content_requests() if seen.target.partition("?")[2] not in ("", "n=1000")]
