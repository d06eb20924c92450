"""`make bench`: it measures what it says, its sums are right, and it notices when a server does not do its work."""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import document, report, targets
from bench.figures import Answer, Case, Row, ratio
from bench.image import BenchFailed, Blob
from bench.install import PACKAGES
from bench.link import Line, relay
from bench.questions import QUESTIONS
from bench.readers import Unfinished, flow, read
from bench.rounds import record
from bench.servers import installed, lacking
from tests.e2e.processes import free_port
from tests.e2e.programs import missing

TOP = Path(__file__).parents[1]
BLOB = Blob("/blob", "sha256:0", 5)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CASE = Case("plain", "A blob", ["gb_per_second", "cpu_per_gb"], ["cpu_per_gb"])


@contextmanager
def answering(*answers: bytes) -> Iterator[int]:
    """A server for one connection, which answers each request with the next of these bytes; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for answer in answers:
                    connection.recv(4096)
                    connection.sendall(answer)
                connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def tiny(question: str, home: Path, *arguments: str) -> dict[str, Any]:
    """What a tiny run of a question has found."""
    file = home / "bench.json"
    argv = [sys.executable, "-m", "bench", question, "--tiny", f"--json={file}", f"--directory={home}", *arguments]
    done = subprocess.run(argv, cwd=TOP, capture_output=True, text=True, check=False)
    assert file.exists(), done.stdout + done.stderr
    found: dict[str, Any] = json.loads(file.read_text())[question]
    return found


def answered() -> Answer:
    """A question with one case, two rounds of the mirror and of nginx, and a rival that has failed."""
    answer = Answer(
        "blobs", "Warm blobs", servers={"mirror": "mirror 1", "nginx": "nginx 1", "registry3": "Distribution"}
    )
    answer.case(CASE)
    for server, cpu in (("mirror", (0.6, 6.0, 1.2)), ("nginx", (0.2, 2.0, 0.4))):
        for value in cpu:
            record(answer, CASE, server, partial(dict, gb_per_second=1 / value, cpu_per_gb=value))
    answer.row(CASE, "registry3").failure = "not installed"
    return answer


def test_ratios_are_taken_within_a_round() -> None:
    """A server is compared with the mirror of the same round, so that a slow moment of the machine cancels out."""
    rows = {"mirror": Row({"cpu_per_gb": [0.6, 6.0, 1.2]}), "nginx": Row({"cpu_per_gb": [0.2, 2.0, 0.4]})}

    assert rows["mirror"].middle("cpu_per_gb") == pytest.approx(1.2)
    assert ratio(rows, "nginx", "cpu_per_gb") == pytest.approx(3.0)


def test_nothing_is_compared_with_a_mirror_that_was_not_measured() -> None:
    """Without the mirror there are figures, but no ratios."""
    assert ratio({"nginx": Row({"cpu_per_gb": [0.2]})}, "nginx", "cpu_per_gb") is None


def test_a_failure_is_a_row() -> None:
    """What a server does wrong ends its row with the reason, and nothing else."""
    answer = answered()

    def fail() -> dict[str, float]:
        raise BenchFailed("closed 5 bytes before the end")

    record(answer, CASE, "nginx", fail)
    record(answer, CASE, "nginx", lambda: {"gb_per_second": 9, "cpu_per_gb": 9})

    row = answer.rows["plain"]["nginx"]
    assert row.failure == "closed 5 bytes before the end"
    assert row.figures["cpu_per_gb"] == [0.2, 2.0, 0.4]


def test_answers_are_kept_and_read_again(tmp_path: Path) -> None:
    """What is noted is what is read, and the answers to other questions stay in the file."""
    file = tmp_path / "bench.json"
    report.write(file, {"date": "2026-12-01"}, [answered()])
    report.write(file, {"date": "2026-12-02"}, [Answer("herd", "A herd")])

    found = report.read(file)

    about, answer = found["blobs"]
    assert about == {"date": "2026-12-01"}
    assert report.markdown(answer) == report.markdown(answered())
    assert found["herd"][0] == {"date": "2026-12-02"}


def test_tables_have_medians_ratios_and_failures() -> None:
    """A line for each server: medians, the mirror's figure over it, and below why there are none."""
    text = report.markdown(answered())

    assert "| mirror 1 | 0.83 | 1.200 |  |" in text
    assert "| nginx 1 | 2.50 | 0.400 | 3.00 |" in text
    assert "| Distribution | failed |  |  |" in text
    assert "Distribution: not installed." in text


def test_a_flow_counts_whole_answers_over_one_connection() -> None:
    """Each of several downloads is read to its end, in pieces that fall anywhere."""
    with answering(ANSWER, ANSWER[:20]) as port:
        found = flow(port, BLOB, 1, 0.1, lambda: 0.0)

    assert found.size == 0  # all that came, came before the count began
    with answering(ANSWER) as port:
        (reading,) = read(port, [BLOB])
    assert 0 < reading.first_byte <= reading.total


def test_a_herd_that_is_not_served_in_time_is_a_failure() -> None:
    """Clients who still wait when time is over are counted."""
    with answering(ANSWER[:-1]) as port, pytest.raises(Unfinished, match=r"1 of 1 clients were waiting, with 80 %"):
        read(port, [BLOB], seconds=0.2)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
    ],
    ids=["not 200", "another length"],
)
def test_only_the_blob_is_taken(answer: bytes) -> None:
    """A refusal or another length is no figure but a failure."""
    with answering(answer) as port, pytest.raises(BenchFailed):
        read(port, [BLOB])


def test_targets_are_met_or_not() -> None:
    """Each target says what was measured and whether that is enough, by the value as it is shown."""
    met, missed = Answer("manifests", "Manifests"), Answer("herd", "A herd")
    met.case(Case("tag", "By tag", ["cpu_per_thousand"]))
    met.row(met.cases[0], "mirror").note({"cpu_per_thousand": 0.05493})
    missed.case(Case("limited", "Limited", ["upstream"]))
    missed.row(missed.cases[0], "mirror").note({"upstream": 1.001})

    text = targets.table({"manifests": met, "herd": missed})

    assert "| manifest by tag: CPU µs per request | ≤ 55 | 54.9 | yes |" in text
    assert "| herd of 100: upstream bytes ÷ blob | ≤ 1 | 1.001 | **no** |" in text
    assert "| real image, cold: time ÷ direct | ≤ 1.1 | not measured |  |" in text


def test_plots_are_those_of_the_figures_that_are_kept() -> None:
    """`make docs` has drawn what `docs/performance.json` holds."""
    for file, picture in document.pictures().items():
        assert file.read_text() == picture, f"{file.name} is old: make docs"
        ElementTree.fromstring(picture)


def test_a_line_is_shared_and_late() -> None:
    """Bytes queue behind all that came before them, at the line's rate, and arrive after its delay."""
    line = Line(rate=100, delay=1)

    assert [line.due(10.0, 50), line.due(10.0, 50), line.due(20.0, 100)] == pytest.approx([11.5, 12.0, 22.0])


async def test_a_line_changes_nothing() -> None:
    """What goes over a line comes out of it, byte for byte and in order, both ways, to the end."""
    content = random.Random(0).randbytes(3 << 20)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(len(content)))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = free_port()
    relayed = await relay(port, server.sockets[0].getsockname()[1], Line(1e9, 0.001), Line(1e9, 0.001))
    async with server, relayed:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(content)
        found = await reader.read(-1)
        writer.close()

    assert found == content


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("question", "servers"),
    [
        ("blobs", ["mirror", "nginx"]),
        ("manifests", ["mirror", "registry3", "docker-registry"]),
        ("cold", ["mirror", "registry3"]),
        ("herd", ["mirror", "nginx-cache"]),
        ("cores", ["mirror"]),
    ],
)
def test_a_question_is_answered_by_every_server(question: str, servers: list[str], tmp_path: Path) -> None:
    """A tiny run of it has figures of every server in every case."""
    lack = {name: why for name in servers if (why := lacking(name)) is not None}
    lack |= {name: f"{name} is not installed" for name in ("curl", "wrk") if not installed(name)}
    if lack:
        missing(", ".join(lack.values()))

    found = tiny(question, tmp_path, f"--servers={','.join(servers)}")
    failed = {
        f"{case} {server}": row["failure"]
        for case, rows in found["rows"].items()
        for server, row in rows.items()
        if row["failure"] is not None
    }
    assert failed == {}
    assert set(found["rows"]) == {case["name"] for case in found["cases"]}
    assert all(row["figures"] for rows in found["rows"].values() for row in rows.values())


def test_the_bench_brings_what_the_gate_brings() -> None:
    """Each package that `make bench` installs is one of those that the gate installs as well."""
    listed = set(re.findall(r"^    ([\w-]+:[\w-]+)$", (TOP / ".ci" / "run").read_text(), re.MULTILINE))

    assert {f"{program}:{package}" for program, package in PACKAGES.items()} <= listed


def test_every_question_can_be_asked_alone() -> None:
    """The command's help names them all."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=TOP, capture_output=True, text=True, check=True
    )

    assert all(name in done.stdout for name in QUESTIONS)


@pytest.mark.timeout(120)
def test_a_slow_disk_is_measured(tmp_path: Path) -> None:
    """A short run has figures of each kind, and a crowd that the slow disk really slows down."""
    rows = tiny("disk", tmp_path)["rows"]["first-byte"]
    if (why := rows["mirror"]["failure"]) is not None:
        pytest.skip(why)

    assert all(rows[kind]["figures"]["asked"][0] > 10 for kind in ("mirror", "quiet", "busy"))
    crowd = {kind: row["figures"]["crowd"][0] for kind, row in rows.items()}
    assert 0 == crowd["quiet"] < crowd["mirror"] < crowd["busy"]


@pytest.mark.timeout(180)
def test_a_full_cache_is_measured(tmp_path: Path) -> None:
    """What a cache is filled with counts as pulled: it is hit, and a sweep frees it."""
    if not installed("wrk"):
        missing("wrk is not installed")
    rows = tiny("objects", tmp_path)["rows"]

    assert all(row["failure"] is None for case in rows.values() for row in case.values())
    assert rows["sweep"]["mirror"]["figures"]["freed"][0] > 0
