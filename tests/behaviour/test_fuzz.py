"""The HTTP surface under requests that nobody would write: always an answer, never a fault of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.grammar import Conversation, Words, conversations
from tests.lines import Lines, lines
from tests.surface import surface
from tests.upstream import Image

__all__ = ["lines"]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""How many other ones to try than the same thousand as ever: `make fuzz`."""
LAST = b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\n\r\n"


def words(image: Image) -> Words:
    """What this image is called."""
    return Words(
        names=("demo", "library/demo", "docker.io/library/demo", "registry.test:5000/library/demo"),
        references=("1", "list", str(image.digest), *(str(blob.digest) for blob in image.blobs)),
        namespaces=("docker.io", "registry.test:5000"),
    )


@pytest.mark.timeout(60 + EXAMPLES // 10)
def test_no_request_is_too_odd(tmp_path: Path, lines: Lines) -> None:
    """Each is answered, in HTTP, with the specification's envelope where it is an error, below 500; the next client is
    served, whatever the last one sent or how it left; the log has no word of trouble.
    """
    with surface(tmp_path) as mirror:

        @settings(
            max_examples=EXAMPLES or 1000,
            derandomize=not EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(conversations(words(mirror.image), LAST))
        def converse(conversation: Conversation) -> None:
            if conversation.leaves:
                with mirror.connect() as client:
                    client.send(conversation.sent)
            else:
                for answer in mirror.ask(*conversation.pieces):
                    mirror.check(answer)
            assert mirror.get("/v2/") == b"{}"

        converse()
        image = mirror.image
        assert mirror.get("/v2/demo/manifests/1") == image.manifest.content
        for blob in image.blobs:
            assert mirror.get(f"/v2/demo/blobs/{blob.digest}") == blob.content
    assert lines.troubles() == []
