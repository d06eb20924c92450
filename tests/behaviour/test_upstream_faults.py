"""What goes wrong once is tried again within the deadline, what cannot get better is not, pauses hold for everyone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.errors import BlobUnknown, UpstreamThrottled, UpstreamTimeout
from mirror.oci.reference import Tag
from tests.asking import FAST, Names, StartAsking, failure, raw_server, soon, start_asking, whole
from tests.upstream import (
    ANY,
    CA_FILE,
    FakeRegistry,
    Fault,
    delay,
    html,
    quota,
    refuse,
    reset,
    server_tls,
    stall,
    stall_at,
    status,
)
from tests.upstream.fixtures import StartUpstream, start_upstream, upstream

__all__ = ["start_asking", "start_upstream", "upstream"]

LATEST = Tag("latest")
BLOB = Digest.of(b"any")


@pytest.mark.parametrize(
    "fault",
    [reset(), refuse(), status(408), status(500), status(502), html(503), status(504), stall()],
    ids=lambda fault: fault.name,
)
async def test_what_goes_wrong_once_is_tried_again(
    upstream: FakeRegistry, start_asking: StartAsking, fault: Fault
) -> None:
    """A reset, an empty answer, a 5xx or a try that hangs costs another request; a metric counts it with the reason."""
    image = upstream.add_image("team/app", "latest")
    # aiohttp itself repeats, once, what breaks on a connection that was used before.
    silent = fault.name in ("reset", "refuse")
    upstream.fault(ANY, fault, times=2 if silent else 1, kind="manifest")
    asking = start_asking(upstream.url)

    body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))

    assert body.digest == image.digest
    assert upstream.count(kind="manifest") == (3 if silent else 2)
    reason = {"stall": "timeout", "reset": "reset", "refuse": "reset"}.get(fault.name, "status")
    assert asking.metric("upstream_retries_total", reason=reason) == 1
    assert asking.metric("upstream_up") == 1


async def test_connections_that_are_refused_are_tried_again(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Also before a request could be sent."""
    upstream.add_image("team/app", "latest")
    upstream.refuse_connections(2)
    asking = start_asking(upstream.url)

    assert (await asking.upstreams.head_manifest(asking.target(), LATEST, soon(5))).digest is not None


async def test_tries_are_few(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """An upstream that fails for good is asked four times, and the error says what it answered."""
    upstream.fault(ANY, status(500))
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.open_blob(asking.target(), BLOB, soon(5)))

    assert error.reason == "status"
    assert "answered 500" in error.message
    assert upstream.host in error.message
    assert upstream.requests_for(BLOB) == 4
    assert asking.metric("upstream_up") == 0
    assert asking.metric("upstream_requests_total", kind="blob", status="500") == 4


async def test_tries_end_with_the_deadline(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Hanging tries are cut at a quarter second here, the whole at the deadline."""
    upstream.fault(ANY, stall(), kind="blob")
    asking = start_asking(upstream.url)

    assert isinstance(await failure(asking.upstreams.open_blob(asking.target(), BLOB, soon())), UpstreamTimeout)
    assert 2 <= upstream.requests_for(BLOB) <= 3


@pytest.mark.parametrize("code", [404, 403, 401])
async def test_a_no_is_not_tried_again(upstream: FakeRegistry, start_asking: StartAsking, code: int) -> None:
    """An answer is an answer."""
    upstream.fault(ANY, status(code), kind="blob")
    asking = start_asking(upstream.url)

    with pytest.raises(Exception, match="no blob" if code == 404 else "refused"):
        await asking.upstreams.open_blob(asking.target(), BLOB, soon())
    assert upstream.requests_for(BLOB) == 1


@pytest.mark.parametrize("code", [402, 405, 410, 418, 451])
async def test_an_odd_status_is_no_answer(upstream: FakeRegistry, start_asking: StartAsking, code: int) -> None:
    """Neither a "no" nor worth another try."""
    upstream.fault(ANY, status(code), kind="manifest")
    asking = start_asking(upstream.url)

    assert (await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))).reason == "status"
    assert upstream.count(kind="manifest") == 1


async def test_nobody_listening_is_unreachable(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """The reason for a metric, the host for a person."""
    await upstream.stop()
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))

    assert error.reason == "unreachable"
    assert upstream.host in error.message
    assert asking.metric("upstream_requests_total", kind="manifest", status="unreachable") == 4


async def test_a_name_that_does_not_resolve_is_told(start_asking: StartAsking) -> None:
    """DNS has a reason of its own."""
    asking = start_asking("http://nowhere.test", resolver=Names({}))

    assert (await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))).reason == "dns"


async def test_what_is_no_http_is_no_answer(start_asking: StartAsking) -> None:
    """Another protocol on the port: asked once, and its words stay out of our message."""
    async with raw_server(lambda _: b"SSH-2.0-planted\r\n") as (url, heads):
        asking = start_asking(url)
        error = await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))

    assert error.reason == "protocol"
    assert "planted" not in error.message
    assert len(heads) == 2  # with the ping


async def test_a_certificate_that_does_not_verify_is_not_tried_again(
    start_upstream: StartUpstream, start_asking: StartAsking
) -> None:
    """It will not get better within seconds; nothing is sent."""
    upstream = await start_upstream(tls=server_tls())
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))

    assert error.reason == "tls"
    assert "self-signed certificate" in error.message
    assert upstream.requests == []
    assert upstream.connections == 2  # with the ping


@pytest.mark.parametrize("settings", [{"ca_file": CA_FILE}, {"insecure": True}], ids=["ca_file", "insecure"])
async def test_an_own_certificate_authority_is_trusted(
    start_upstream: StartUpstream, start_asking: StartAsking, settings: dict[str, object]
) -> None:
    """Or, for tests, any certificate."""
    upstream = await start_upstream(tls=server_tls())
    image = upstream.add_image("team/app", "latest")
    asking = start_asking(upstream.url, **settings)

    assert (await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))).digest == image.digest


async def test_a_ca_file_that_cannot_be_used_is_told(
    start_upstream: StartUpstream, start_asking: StartAsking, tmp_path: Path
) -> None:
    """The message names the file."""
    upstream = await start_upstream(tls=server_tls())
    for name, content in (("missing.pem", None), ("broken.pem", "no certificate")):
        if content is not None:
            (tmp_path / name).write_text(content)
        asking = start_asking(upstream.url, ca_file=tmp_path / name)

        error = await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))

        assert error.reason == "tls"
        assert name in error.message


@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_pauses_everyone(upstream: FakeRegistry, start_asking: StartAsking, code: int) -> None:
    """Nobody asks that host during the pause; whoever has less time hears at once how long it is."""
    upstream.add_image("team/app", "latest")
    upstream.fault(ANY, status(code, retry_after=30), kind="blob", times=1)
    asking = start_asking(upstream.url)
    await failure(asking.upstreams.open_blob(asking.target(), BLOB, soon()))
    upstream.reset()

    # Whoever waited would wait for longer than a test may take.
    errors = [await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon(25))) for _ in range(3)]

    assert upstream.requests == []
    assert all(isinstance(error, UpstreamThrottled) == (code == 429) for error in errors)
    assert all(error.retry_after is not None and 28 < error.retry_after <= 30 for error in errors)
    assert not asking.metric("upstream_retries_total", reason="throttled" if code == 429 else "status")


@pytest.mark.parametrize("via", ["1.1 mirror", "1.1 proxy, 1.1 mirror"])
@pytest.mark.parametrize("code", [429, 503])
async def test_trouble_that_a_mirror_passes_on_pauses_the_one_thing(
    upstream: FakeRegistry, start_asking: StartAsking, code: int, via: str
) -> None:
    """It is not the mirror that is in trouble: nobody asks for that thing during the pause, and for all others."""
    image = upstream.add_image("team/app", "latest")
    upstream.fault(ANY, status(code, retry_after=30, headers={"Via": via}), kind="blob", times=1)
    asking = start_asking(upstream.url)
    await failure(asking.upstreams.open_blob(asking.target(), BLOB, soon()))
    upstream.reset()

    errors = [await failure(asking.upstreams.head_blob(asking.target(), BLOB, soon(25))) for _ in range(3)]

    assert upstream.requests == []
    assert all(error.retry_after is not None and 28 < error.retry_after <= 30 for error in errors)
    assert (await asking.upstreams.get_manifest(asking.target(), LATEST, soon())).digest == image.digest


async def test_a_pause_shorter_than_the_deadline_is_waited_out(
    upstream: FakeRegistry, start_asking: StartAsking
) -> None:
    """One 429 in the middle of a pull is not noticed by the client, bare or with Retry-After."""
    image = upstream.add_image("team/app", "latest")
    asking = start_asking(upstream.url)
    for retry_after in (None, "100ms"):
        upstream.fault(ANY, status(429, retry_after=retry_after), kind="manifest", times=1)

        body = await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))

        assert body.digest == image.digest
    assert asking.metric("upstream_retries_total", reason="throttled") == 2


async def test_callers_in_a_pause_ask_after_it(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Twenty callers that wait together are all answered, and the upstream saw one refusal only."""
    image = upstream.add_image("team/app", "latest")
    upstream.fault(ANY, status(429, retry_after="200ms"), kind="blob", times=1)
    asking = start_asking(upstream.url)
    await failure(asking.upstreams.open_blob(asking.target(), BLOB, soon(0.1)))

    bodies = await asyncio.gather(*(asking.upstreams.get_manifest(asking.target(), LATEST, soon(5)) for _ in range(20)))

    assert {body.digest for body in bodies} == {image.digest}
    assert upstream.count(status=429) == 1


async def test_a_refusal_for_good_is_throttling(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Tries and deadline bound a 429 that never ends; the client is told when to come back."""
    upstream.fault(ANY, status(429), kind="manifest")
    asking = start_asking(upstream.url)

    error = await failure(asking.upstreams.get_manifest(asking.target(), LATEST, soon()))

    assert isinstance(error, UpstreamThrottled)
    assert error.retry_after is not None
    assert error.retry_after > 0
    assert upstream.count(kind="manifest") <= 4


async def test_the_quota_is_exported(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Docker Hub's headers, as last seen, of any answer; an upstream without them exports none."""
    upstream.add_image("team/app", "latest")
    asking = start_asking(upstream.url)
    await asking.upstreams.head_manifest(asking.target(), LATEST, soon())
    assert asking.metric("upstream_quota_remaining") is None

    upstream.fault(ANY, quota(limit=100, remaining=2))
    await asking.upstreams.get_manifest(asking.target(), LATEST, soon())

    assert asking.metric("upstream_quota_limit") == 100
    assert asking.metric("upstream_quota_remaining") == 1


async def test_requests_and_bytes_are_counted(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """By kind and status; our own errands are no manifests."""
    image = upstream.add_image("team/app", "latest", layers=(5000,))
    asking = start_asking(upstream.url)

    await asking.upstreams.get_manifest(asking.target(), LATEST, soon())
    await whole(await asking.upstreams.open_blob(asking.target(), image.layers[0].digest, soon()))

    assert asking.metric("upstream_requests_total", kind="manifest", status="200") == 1
    assert asking.metric("upstream_requests_total", kind="auth", status="200") == 1
    assert asking.metric("upstream_bytes_total", kind="blob") == 5000
    assert asking.metric("upstream_bytes_total", kind="manifest") == image.manifest.size
    assert asking.metric("upstream_first_byte_seconds_count") == 3


async def test_a_slow_ping_does_not_cost_the_request(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """A ping that fails is not fatal: the request itself is sent, and the ping is not repeated for it."""
    image = upstream.add_image("team/app", "latest")
    upstream.fault(ANY, delay(FAST.try_ * 2), kind="ping")
    asking = start_asking(upstream.url)

    for _ in range(2):
        assert (await asking.upstreams.get_manifest(asking.target(), LATEST, soon(5))).digest == image.digest
    assert upstream.count(kind="ping") == 1


async def test_a_refusal_does_not_wait_for_its_explanation(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """An error whose body stalls has been understood by its status; bytes of refusals are no content."""
    upstream.fault(ANY, status(404), kind="blob")
    upstream.fault(ANY, stall_at(5), kind="blob")
    asking = start_asking(upstream.url)

    with pytest.raises(BlobUnknown):
        await asking.upstreams.open_blob(asking.target(), BLOB, soon())
    assert not asking.metric("upstream_bytes_total", kind="blob")


async def test_nothing_is_asked_after_the_end(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """Closing is for good, and may be done twice."""
    asking = start_asking(upstream.url)
    await asking.upstreams.head_blob(asking.target(), upstream.put_blob("team/app", 10).digest, soon())
    await asking.upstreams.close()

    error = await failure(asking.upstreams.head_blob(asking.target(), BLOB, soon()))

    assert error.reason == "stopped"
    await asking.upstreams.close()


async def test_no_time_left_is_a_timeout(upstream: FakeRegistry, start_asking: StartAsking) -> None:
    """A request whose deadline has passed sends nothing."""
    asking = start_asking(upstream.url)
    await asking.upstreams.head_blob(asking.target(), upstream.put_blob("team/app", 10).digest, soon())
    upstream.reset()

    error = await failure(asking.upstreams.head_blob(asking.target(), BLOB, soon(0)))

    assert isinstance(error, UpstreamTimeout)
    assert upstream.requests == []
