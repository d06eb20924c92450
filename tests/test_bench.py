"""`make bench`: it measures what it says, its sums are right, and it notices when a server does not do its work."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.image import BenchFailed
from bench.load import download
from bench.questions import Sample
from bench.report import summarise
from bench.servers import SERVERS, installed

TOP = Path(__file__).parents[1]


def sample(server: str, number: int, *, seconds: float, cpu: float) -> Sample:
    """One round in which a server sent 2 GB."""
    return Sample("blob-1", server, number, 2_000_000_000, seconds, cpu)


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

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


def test_lines_are_medians_and_ratios_within_a_round() -> None:
    """A server is compared with the mirror of the same round, so that a slow moment of the machine cancels out."""
    samples = [
        *(sample("mirror", number, seconds=1.0 * slow, cpu=0.6 * slow) for number, slow in enumerate((1, 10, 2))),
        *(sample("nginx", number, seconds=0.5 * slow, cpu=0.2 * slow) for number, slow in enumerate((1, 10, 2))),
    ]

    ours, its = summarise("blob", samples)

    assert (ours.server, its.server) == ("mirror", "nginx")
    assert [ours.rate, ours.cpu, its.rate, its.cpu] == pytest.approx([1.0, 0.6, 2.0, 0.2])
    assert its.rate_ratio == pytest.approx(0.5)
    assert its.cpu_ratio == pytest.approx(3.0)


def test_nothing_is_compared_with_a_mirror_that_was_not_measured() -> None:
    """Without the mirror there are figures, but no ratios."""
    (line,) = summarise("blob", [sample("nginx", 0, seconds=1, cpu=0.2)])

    assert line.rate == pytest.approx(2.0)
    assert line.rate_ratio is line.cpu_ratio is None


def test_download_counts_whole_answers_over_one_connection() -> None:
    """Each of several downloads is read to its end, in pieces that fall anywhere."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    with answering(answer, answer, answer) as port:
        assert download(port, "/blob", 5, connections=1, times=3) > 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
    ],
    ids=["not 200", "another length", "cut short"],
)
def test_download_takes_nothing_but_the_blob(answer: bytes) -> None:
    """A refusal, another length or an early end is no figure but a failure."""
    with answering(answer) as port, pytest.raises(BenchFailed):
        download(port, "/blob", 5, connections=1, times=1)


def test_bench_measures_every_server_that_is_installed(tmp_path: Path) -> None:
    """A short run gives a figure of each server for a question of each kind, and says which servers are left out."""
    file = tmp_path / "bench.json"
    arguments = ["--rounds=1", "--quick", "--blob-size=1", "--blob-bytes=8", "--only=blob-8,manifest-tag"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments, f"--json={file}", f"--directory={tmp_path}"],
        cwd=TOP, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    expected = {name for name, (program, _) in SERVERS.items() if program is None or installed(program)}
    left_out = {line.split()[2].rstrip(",") for line in done.stdout.splitlines() if line.startswith("left out")}
    assert left_out - {"manifests"} == SERVERS.keys() - expected
    found = json.loads(file.read_text())["questions"]
    assert set(found) == {"blob-8"} | ({"manifest-tag"} if installed("wrk") else set())
    for question in found.values():
        assert {line["server"] for line in question["summary"]} == expected
        assert all(one["amount"] and one["cpu"] > 0 for one in question["samples"])
    assert all(one["amount"] == 8 << 20 for one in found["blob-8"]["samples"])


@pytest.mark.timeout(120)
def test_a_slow_disk_is_measured(tmp_path: Path) -> None:
    """A short run has figures of each kind, and a crowd that the slow disk really slows down."""
    arguments = ["--rounds=1", "--seconds=1", "--size=8", f"--directory={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.slow_disk", *arguments], cwd=TOP, capture_output=True, text=True, check=False
    )
    if done.stderr.startswith("slow disk: "):
        pytest.skip(done.stderr.strip())

    found = json.loads(done.stdout)
    assert all(found["first_byte_ms"][kind]["requests"] > 10 for kind in ("quiet", "busy", "slow"))
    assert 0 == found["crowd_mib"]["quiet"] < found["crowd_mib"]["slow"] < found["crowd_mib"]["busy"]
