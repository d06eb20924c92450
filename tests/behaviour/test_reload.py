"""Another configuration counts from one moment on, and costs nobody a byte."""

from __future__ import annotations

import asyncio
import shutil
import signal
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from mirror.config import Address, UpstreamSettings
from tests.behaviour.test_downloads import PATIENT
from tests.behaviour.test_tls import ask, connected
from tests.certificates import HERE, SERVER
from tests.conftest import StartMirror
from tests.lines import Lines, lines
from tests.raw import RawClient
from tests.reading import blob_path, nothing_unheard, readings
from tests.served import Served
from tests.storing import until
from tests.upstream import ANY, Basic, Bearer, FakeRegistry, refuse, stall_at, status

__all__ = ["lines"]

MIB = 1 << 20


@pytest.fixture(autouse=True)
async def heard() -> AsyncIterator[None]:
    """No test leaves an exception that nobody heard."""
    with nothing_unheard():
        yield


def settings_of(upstream: FakeRegistry, **more: Any) -> UpstreamSettings:
    """Where an upstream is, and what else is configured for it."""
    return UpstreamSettings(url=upstream.url, **more)


async def alone(limit: float = 10) -> None:
    """Waits until no engine of an earlier configuration is kept."""
    await until(lambda: not any(task.get_name() == "engine before" for task in asyncio.all_tasks()), limit)


# Rules.


async def test_a_ttl_counts_for_what_is_held(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A tag that was fresh for minutes, and whose answer lay ready, is asked for when the TTL says so."""
    mirror = await start_mirror(tag_ttl=3600.0)
    old = upstream.add_image("library/demo", "latest")
    for _ in range(3):
        assert (await mirror.manifest("demo", "latest")).headers["Docker-Content-Digest"] == str(old.digest)
    new = upstream.add_image("library/demo", "latest", layers=(777,))
    assert (await mirror.manifest("demo", "latest")).headers["Docker-Content-Digest"] == str(old.digest)

    assert await mirror.reload(tag_ttl=0.0) == []

    assert (await mirror.manifest("demo", "latest")).headers["Docker-Content-Digest"] == str(new.digest)


async def test_upstreams_come_and_go(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A new one is asked, one that is no longer configured is refused, also for what is held of it."""
    image = upstream.add_image("team/app", "1")
    mirror = await start_mirror(upstreams={"docker.io": upstream, "old.corp": upstream})
    assert (await mirror.manifest("old.corp/team/app", "1")).status == 200
    assert (await mirror.manifest("new.corp/team/app", "1")).status == 403

    await mirror.reload(upstreams={"docker.io": settings_of(upstream), "new.corp": settings_of(upstream)})

    assert (await mirror.manifest("new.corp/team/app", "1")).status == 200
    assert (await mirror.manifest("old.corp/team/app", "1")).status == 403
    assert (await mirror.manifest("old.corp/team/app", image.digest)).status == 403
    assert mirror.metric("mirror_upstream_up", upstream="new.corp") == 1


async def test_a_password_that_was_wrong_can_be_mended(
    start_mirror: StartMirror, upstream: FakeRegistry, lines: Lines
) -> None:
    """From the next request on; and no alarm is left over."""
    upstream.auth = Basic({"ci": "right"})
    upstream.add_image("library/demo", "1")
    wrong = settings_of(upstream, username="ci", password=SecretStr("wrong"))
    mirror = await start_mirror(upstreams={"docker.io": wrong})
    assert (await mirror.manifest("demo", "1")).status == 503
    assert mirror.metric("mirror_credentials_rejected", upstream="docker.io") == 1

    await mirror.reload(upstreams={"docker.io": wrong.model_copy(update={"password": SecretStr("right")})})

    assert (await mirror.manifest("demo", "1")).status == 200
    assert mirror.metric("mirror_credentials_rejected") == 0


async def test_limits_on_clients_count_for_those_who_come(start_mirror: StartMirror) -> None:
    """Nobody who is here is turned away; trusted proxies may be others."""
    mirror = await start_mirror(max_connections_per_client=1)
    async with await RawClient.connect(mirror.app.port) as first:
        await first.ask("/v2/")
        await first.answer()
        assert (await mirror.get("/v2/")).status == 503
        await mirror.reload(max_connections_per_client=5)
        assert (await mirror.get("/v2/")).status == 200
        await mirror.reload(max_connections_per_client=1)
        await first.ask("/v2/")
        assert (await first.answer())[0].status == 200
        await mirror.reload(trusted_proxies=(ip_network("127.0.0.0/8"),))
        async with await RawClient.connect(mirror.app.port) as another:
            await another.ask("/v2/")
            assert (await another.answer())[0].status == 200


async def test_a_smaller_budget_counts(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """What is larger than half of it is not kept any more."""
    mirror = await start_mirror()
    await mirror.reload(storage=mirror.settings.storage.model_copy(update={"max_size": 2 * MIB}))
    blob = upstream.put_blob("library/demo", MIB + 500_000)
    for _ in range(2):
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
        await mirror.quiet()
    assert upstream.requests_for(blob) == 2
    assert mirror.metric("mirror_cache_max_bytes") == 2 * MIB


async def test_keys_that_need_a_restart_are_named(start_mirror: StartMirror, tmp_path: Path) -> None:
    """Each time, as long as they differ from those at the start; everything else counts."""
    mirror = await start_mirror()
    before = mirror.settings
    moved = before.storage.model_copy(update={"path": tmp_path / "elsewhere", "max_size": 5 * MIB})
    changes = {"listen": Address("127.0.0.1", 1), "workers": 7, "storage": moved, "log_level": "debug"}
    for _ in range(2):
        assert await mirror.reload(**changes) == ["listen", "workers", "storage.path", "log_level"]
    assert mirror.metric("mirror_cache_max_bytes") == 5 * MIB
    assert mirror.app.settings.storage.path == before.storage.path
    assert mirror.app.settings.listen == before.listen
    assert await mirror.reload(**{key: getattr(before, key) for key in changes}) == []


# What is under way, and what is known.


async def test_downloads_go_on_and_can_be_joined(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Through several changes a blob on its way is fetched once; those from before and those from after have all of it,
    and what was kept for it is let go of when it is here.
    """
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 3 * MIB)
    held = upstream.fault(blob, stall_at(MIB))
    async with readings(2, mirror, blob_path("demo", blob)) as before:
        await asyncio.gather(*(client.take(MIB) for client in before))
        for ttl in (1.0, 2.0):
            await mirror.reload(tag_ttl=ttl, upstreams={"docker.io": settings_of(upstream, tag_ttl=ttl)})
        async with readings(2, mirror, blob_path("demo", blob)) as after:
            await asyncio.gather(*(client.take(MIB) for client in after))
            held.release()
            rests = await asyncio.gather(*(client.rest() for client in (*before, *after)))
    assert all(rest == blob.read(MIB, blob.size) for rest in rests)
    assert upstream.requests_for(blob) == 1
    await mirror.quiet()
    await alone()
    assert (await mirror.blob("demo", blob.digest)).cache == "hit"


async def test_a_download_from_another_place_is_not_joined(
    start_mirror: StartMirror, upstream: FakeRegistry, start_upstream: Any
) -> None:
    """Who comes after the registry has moved is served from where it is now, whatever the old place does."""
    mirror = await start_mirror(timeouts=PATIENT)
    other = await start_upstream()
    blob = upstream.put_blob("library/demo", 3 * MIB)
    other.put_blob("library/demo", blob)
    held = upstream.fault(blob, stall_at(MIB))
    async with readings(1, mirror, blob_path("demo", blob)) as [before]:
        await before.take(MIB)
        await mirror.reload(upstreams={"docker.io": settings_of(other)})
        assert (await mirror.blob("demo", blob.digest)).body == blob.content
        held.release()
        assert await before.rest() == blob.read(MIB, blob.size)
    assert (upstream.requests_for(blob), other.requests_for(blob)) == (1, 1)


async def test_a_pause_that_an_upstream_asked_for_is_kept(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Another configuration is no reason to ask again."""
    upstream.add_image("library/demo", "1")
    mirror = await start_mirror()
    upstream.fault(ANY, status(429, retry_after=60), times=1)
    assert (await mirror.manifest("demo", "1")).status == 429
    asked = upstream.count()

    await mirror.reload(tag_ttl=1.0)

    reply = await mirror.manifest("demo", "1")
    assert (reply.status, int(reply.headers["Retry-After"]) > 50) == (429, True)
    assert upstream.count() == asked


async def test_who_is_known_not_to_answer_still_is(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """A breaker that is open stays open, and closes with the next answer."""
    upstream.add_image("library/demo", "1")
    mirror = await start_mirror()
    upstream.fault(ANY, refuse())
    for _ in range(3):
        assert (await mirror.manifest("demo", "1")).status == 503
    assert mirror.metric("mirror_upstream_breaker_open") == 1

    await mirror.reload(tag_ttl=1.0)

    assert mirror.metric("mirror_upstream_breaker_open") == 1
    upstream.rules.clear()
    async with asyncio.timeout(10):
        while (await mirror.manifest("demo", "1")).status != 200:  # noqa: ASYNC110 - its turn comes with time
            await asyncio.sleep(0.02)
    assert mirror.metric("mirror_upstream_breaker_open") == 0


async def test_tokens_are_kept_for_the_credential_that_they_were_minted_for(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The same credential needs no other one; another credential does."""
    upstream.auth = Bearer({"ci": "one", "cd": "two"})
    upstream.add_image("library/demo", "1")
    upstream.add_image("library/demo", "2")
    upstream.add_image("library/demo", "3")
    first = settings_of(upstream, username="ci", password=SecretStr("one"))
    mirror = await start_mirror(upstreams={"docker.io": first})
    assert (await mirror.manifest("demo", "1")).status == 200

    await mirror.reload(tag_ttl=1.0)
    assert (await mirror.manifest("demo", "2")).status == 200
    assert upstream.count(kind="token") == 1

    second = settings_of(upstream, username="cd", password=SecretStr("two"))
    await mirror.reload(upstreams={"docker.io": second})
    assert (await mirror.manifest("demo", "3")).status == 200
    assert upstream.count(kind="token") == 2


async def test_it_may_be_stopped_while_earlier_configurations_are_in_use(
    start_mirror: StartMirror, upstream: FakeRegistry
) -> None:
    """The stop ends them as well, and waits for none of them longer than for its own."""
    mirror = await start_mirror(timeouts=PATIENT)
    blob = upstream.put_blob("library/demo", 3 * MIB)
    upstream.fault(blob, stall_at(MIB))
    async with readings(1, mirror, blob_path("demo", blob)) as [client]:
        await client.take(MIB)
        for _ in range(12):  # more than are kept
            await mirror.reload()
        await mirror.stop(grace=0.1)
    await alone(0.1)


# TLS.


async def test_a_renewed_certificate_is_shown_to_who_comes(
    start_mirror: StartMirror, upstream: FakeRegistry, tmp_path: Path
) -> None:
    """The files alone have changed. Connections go on as they are, in the middle of an answer and between two."""

    def serial(writer: asyncio.StreamWriter) -> str:
        return str(writer.get_extra_info("ssl_object").getpeercert()["serialNumber"])

    here = {name: tmp_path / name for name in ("server.pem", "server.key")}
    for name, path in here.items():
        shutil.copy(HERE / name, path)
    tls = SERVER.model_copy(update={"certificate": here["server.pem"], "key": here["server.key"]})
    mirror = await start_mirror(timeouts=PATIENT, tls=tls)
    blob = upstream.put_blob("library/demo", 2 * MIB)
    held = upstream.fault(blob, stall_at(MIB))
    async with connected(mirror) as idle, connected(mirror) as (reader, writer):
        await ask(*idle)
        await idle[0].readexactly(2)
        await ask(reader, writer, f"/v2/demo/blobs/{blob.digest}")
        assert await reader.readexactly(MIB) == blob.read(0, MIB)
        for kind in ("pem", "key"):
            shutil.copy(HERE / f"renewed.{kind}", here[f"server.{kind}"])

        assert await mirror.reload() == []

        async with connected(mirror) as (_, renewed):
            assert serial(renewed) != serial(writer)
        held.release()
        assert await reader.readexactly(MIB) == blob.read(MIB, MIB)
        for connection in ((reader, writer), idle):
            assert (await ask(*connection)).startswith(b"HTTP/1.1 200 ")


async def test_no_connection_is_lost_to_changes_under_load(start_mirror: StartMirror, upstream: FakeRegistry) -> None:
    """Clients who come, ask and stay during many changes get every answer that they ask for."""
    mirror = await start_mirror(tls=SERVER)
    image = upstream.add_image("library/demo", "1", layers=(200_000,))
    layer = image.blobs[-1]
    over = asyncio.Event()
    answered = 0

    async def client() -> None:
        nonlocal answered
        while not over.is_set():
            async with connected(mirror) as (reader, writer):
                for _ in range(4):
                    head = await ask(reader, writer, f"/v2/demo/blobs/{layer.digest}")
                    assert head.startswith(b"HTTP/1.1 200 ")
                    assert await reader.readexactly(layer.size) == layer.content
                    answered += 1

    clients = [asyncio.create_task(client()) for _ in range(6)]
    for number in range(10):
        await mirror.reload(tag_ttl=float(number))
        await asyncio.sleep(0.05)
    over.set()
    await asyncio.gather(*clients)
    assert answered >= 24
    await alone()


async def test_tls_can_be_turned_on_and_off(start_mirror: StartMirror) -> None:
    """For who comes; the gauge of the certificate's end is there while there is one."""
    mirror = await start_mirror()
    async with await RawClient.connect(mirror.app.port) as plain:
        await mirror.reload(tls=SERVER)
        async with connected(mirror) as connection:
            assert (await ask(*connection)).startswith(b"HTTP/1.1 200 ")
        assert mirror.metric("mirror_tls_certificate_expiry_timestamp_seconds") == 4922899200
        await plain.ask("/v2/")
        assert (await plain.answer())[0].status == 200
    await mirror.reload(tls=SERVER.model_copy(update={"certificate": None, "key": None}))
    assert (await mirror.get("/v2/")).status == 200
    families = [family for family in mirror.app.metrics.registry.collect() if "certificate_expiry" in family.name]
    assert [family.samples for family in families] == [[]]


async def test_files_that_cannot_be_used_change_nothing(start_mirror: StartMirror, tmp_path: Path) -> None:
    """Where a certificate breaks between the check and its use, all of the old configuration stays in force."""
    mirror = await start_mirror(tls=SERVER, tag_ttl=5.0)
    with pytest.raises(ssl.SSLError):
        await mirror.app.reload(
            mirror.settings.model_copy(
                update={"tag_ttl": 6.0, "tls": SERVER.model_copy(update={"key": HERE / "renewed.key"})}
            )
        )
    assert mirror.app.settings.tag_ttl == 5.0
    assert (await mirror.get("/v2/")).status == 200


# The signal.


@pytest.fixture(params=[1, 2], ids=["one process", "two workers"])
async def served(upstream: FakeRegistry, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A mirror in processes of its own."""
    process = await Served(tmp_path, upstream, workers=request.param).start()
    yield process
    await process.stop()


@pytest.mark.timeout(120)  # several processes have to start, on however busy a machine
async def test_sighup_has_the_file_read_again(served: Served, upstream: FakeRegistry) -> None:
    """What is right counts; what is wrong changes nothing and is told as `check-config` tells it; what needs a restart
    is named.
    """

    async def answers(path: str, status: int) -> None:
        """Waits until every worker answers so: they hear of it one after the other."""
        run = 0
        async with asyncio.timeout(30):
            while run < 20:
                run = run + 1 if (await served.get(path))[0] == status else 0

    upstream.add_image("library/demo", "1")
    upstream.add_image("team/app", "1")
    new, old = "/v2/new.corp/team/app/manifests/1", "/v2/library/demo/manifests/1"
    await answers(new, 403)

    await served.reload(upstreams={"docker.io": {"url": upstream.url}, "new.corp": {"url": upstream.url, "tag_tl": 1}})
    await served.told("the configuration cannot be used; the one before stays in force")
    assert "tag_tl is not a key; did you mean tag_ttl?" in "".join(served.lines)
    await answers(new, 403)
    await answers(old, 200)

    await served.reload(upstreams={"new.corp": {"url": upstream.url}}, listen="127.0.0.1:1")
    await served.told("the configuration was read again")
    await answers(new, 200)
    [named] = [line for line in served.lines if "need a restart" in line]
    assert '"keys":"listen"' in named

    served.process.send_signal(signal.SIGTERM)
    assert await served.ended() == 0


# Without a signal.


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2], ids=["one process", "two workers"])
async def test_files_that_change_are_read_again_without_a_signal(
    workers: int, upstream: FakeRegistry, tmp_path: Path
) -> None:
    """With --watch: what is wrong changes nothing, and a renewed certificate is shown to who comes."""
    for kind in ("pem", "key"):
        shutil.copy(HERE / f"server.{kind}", tmp_path / f"server.{kind}")
    tls = {"certificate": str(tmp_path / "server.pem"), "key": str(tmp_path / "server.key")}
    served = await Served(tmp_path, upstream, options=("--watch",), workers=workers, tls=tls).start()
    try:
        first = ssl.get_server_certificate(("127.0.0.1", served.port))
        for kind in ("key", "pem"):
            shutil.copy(HERE / f"renewed.{kind}", tmp_path / f"fresh.{kind}")
            (tmp_path / f"fresh.{kind}").rename(tmp_path / f"server.{kind}")
        await served.told("the configuration was read again")
        await until(lambda: ssl.get_server_certificate(("127.0.0.1", served.port)) != first, 30)

        served.rewrite(tag_tl="1m")
        await served.told("the configuration cannot be used; the one before stays in force")
        assert "tag_tl is not a key" in "".join(served.lines)

        served.process.send_signal(signal.SIGTERM)
        assert await served.ended() == 0
    finally:
        await served.stop()
