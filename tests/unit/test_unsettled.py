"""The journal of young blobs: what a crash, a torn line, a full disk and many commits do to it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.store import unsettled
from mirror.store.unsettled import Unsettled
from tests.faulty import FaultyFiles

DIGESTS = [Digest.of(bytes([number]), "sha512" if number % 3 == 0 else "sha256") for number in range(200)]


@pytest.fixture
def disk() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def journal(tmp_path: Path, disk: FaultyFiles) -> Unsettled:
    journal = Unsettled(tmp_path / "unsettled", disk)
    assert journal.load() == 0
    return journal


def reloaded(tmp_path: Path) -> Unsettled:
    """The journal as the next process reads it."""
    journal = Unsettled(tmp_path / "unsettled", FaultyFiles())
    journal.load()
    return journal


def suspects(tmp_path: Path) -> set[Digest]:
    """What the next process would verify."""
    journal = reloaded(tmp_path)
    return {digest for digest in DIGESTS if digest in journal}


def test_what_was_added_is_suspect_after_a_crash(journal: Unsettled, tmp_path: Path) -> None:
    """Each digest is on the disk when `add` returns; this process believes its own."""
    for digest in DIGESTS[:5]:
        journal.add(digest)

    assert suspects(tmp_path) == set(DIGESTS[:5])
    assert not any(digest in journal for digest in DIGESTS)


def test_a_line_is_synced_before_add_returns(journal: Unsettled, disk: FaultyFiles) -> None:
    """A blob must not be visible before the journal knows it."""
    disk.log.clear()

    journal.add(DIGESTS[0])

    assert [method for method, _ in disk.log] == ["open", "size", "write", "fsync", "close"]


def test_a_clean_stop_empties_it(journal: Unsettled, tmp_path: Path) -> None:
    """Nothing is verified after it."""
    journal.add(DIGESTS[0])

    journal.clear()

    assert suspects(tmp_path) == set()


def test_a_full_disk_can_be_left_cleanly(journal: Unsettled, disk: FaultyFiles, tmp_path: Path) -> None:
    """Emptying it needs no new room."""
    journal.add(DIGESTS[0])
    disk.fail(errno.ENOSPC, "write")
    disk.fail(errno.ENOSPC, "open", path=".new")

    journal.clear()

    assert suspects(tmp_path) == set()


def test_a_clean_stop_keeps_what_was_never_verified(journal: Unsettled, tmp_path: Path) -> None:
    """Suspects stay suspect; what this process wrote does not become one."""
    for digest in DIGESTS[:3]:
        journal.add(digest)
    second = reloaded(tmp_path)
    second.settle(DIGESTS[0])
    second.add(DIGESTS[9])

    second.clear()

    assert suspects(tmp_path) == set(DIGESTS[1:3])


@settings(max_examples=60)
@given(at=st.integers(0, 10_000), number=st.integers(2, 6))
def test_a_torn_line_costs_no_other(tmp_path_factory: pytest.TempPathFactory, at: int, number: int) -> None:
    """Wherever a power loss cuts the journal, every line before the cut and every line added later is read."""
    tmp_path = tmp_path_factory.mktemp("torn")
    first = Unsettled(tmp_path / "unsettled", FaultyFiles())
    first.load()
    ends = []
    for digest in DIGESTS[:number]:
        first.add(digest)
        ends.append((tmp_path / "unsettled").stat().st_size)
    data = (tmp_path / "unsettled").read_bytes()
    cut = at % (len(data) + 1)
    (tmp_path / "unsettled").write_bytes(data[:cut])
    whole = {digest for digest, end in zip(DIGESTS, ends, strict=False) if end <= cut}
    assert suspects(tmp_path) == whole

    reloaded(tmp_path).add(DIGESTS[100])

    assert suspects(tmp_path) == whole | {DIGESTS[100]}


def test_zeros_after_a_line_do_not_cost_it(tmp_path: Path) -> None:
    """A power loss may leave the length of a line that was never synced, without its bytes."""
    journal = reloaded(tmp_path)
    journal.add(DIGESTS[0])
    data = (tmp_path / "unsettled").read_bytes()
    (tmp_path / "unsettled").write_bytes(data + bytes(72))

    reloaded(tmp_path).add(DIGESTS[1])

    assert suspects(tmp_path) == {DIGESTS[0], DIGESTS[1]}


def test_a_line_that_did_not_reach_the_disk_is_an_error(journal: Unsettled, disk: FaultyFiles, tmp_path: Path) -> None:
    """The commit then fails, and the half line costs no later one."""
    disk.fail(errno.ENOSPC, "write", times=1)
    with pytest.raises(OSError, match="No space"):
        journal.add(DIGESTS[0])
    disk.fail(errno.EIO, "fsync", times=1)
    with pytest.raises(OSError, match="Input/output"):
        journal.add(DIGESTS[1])

    journal.add(DIGESTS[2])

    assert DIGESTS[2] in reloaded(tmp_path)


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"\xff\xfe" * 99, b"sha256:", b"\n\n\n", b"rm -rf /\n" * 50])
def test_garbage_is_passed_over(tmp_path: Path, garbage: bytes) -> None:
    """Whatever stands in the file, what can be read of it is believed."""
    line = f"{DIGESTS[1]}\n".encode()
    (tmp_path / "unsettled").write_bytes(line + garbage + b"\n" + f"{DIGESTS[2]}".encode())

    assert suspects(tmp_path) == {DIGESTS[1], DIGESTS[2]}


def test_it_stays_short(journal: Unsettled, disk: FaultyFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many commits it holds the newest, which alone can have been lost, and is replaced as a whole."""
    monkeypatch.setattr(unsettled, "_COMPACT_AT", 20)
    monkeypatch.setattr(unsettled, "_KEEP", 5)

    for digest in DIGESTS:
        journal.add(digest)

    assert len((tmp_path / "unsettled").read_text().split()) <= 21
    assert set(DIGESTS[-5:]) <= suspects(tmp_path)
    assert 0 < disk.calls["rename"] <= len(DIGESTS) // 15


def test_many_suspects_do_not_make_every_commit_rewrite_it(
    tmp_path: Path, disk: FaultyFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a crash left and nobody asked for since stays in it, at no further cost."""
    monkeypatch.setattr(unsettled, "_COMPACT_AT", 20)
    monkeypatch.setattr(unsettled, "_KEEP", 5)
    (tmp_path / "unsettled").write_text("".join(f"{digest}\n" for digest in DIGESTS[:100]))
    journal = Unsettled(tmp_path / "unsettled", disk)
    assert journal.load() == 100

    for digest in DIGESTS[100:120]:
        journal.add(digest)
    assert disk.calls["rename"] == 0
    journal.add(DIGESTS[120])

    assert disk.calls["rename"] == 1
    assert suspects(tmp_path) == {*DIGESTS[:100], *DIGESTS[116:121]}


def test_crashes_in_a_row_do_not_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was verified after one of them is not left to the next."""
    monkeypatch.setattr(unsettled, "_COMPACT_AT", 20)
    monkeypatch.setattr(unsettled, "_KEEP", 5)
    for start in range(0, 200, 10):
        journal = reloaded(tmp_path)
        for digest in journal.suspects:
            journal.settle(digest)
        for digest in DIGESTS[start : start + 10]:
            journal.add(digest)

        assert len((tmp_path / "unsettled").read_text().split()) <= 30

    assert set(DIGESTS[-5:]) <= suspects(tmp_path) <= set(DIGESTS[-30:])


def test_threads_may_add_at_once(journal: Unsettled, tmp_path: Path) -> None:
    """No line is lost or torn by another."""

    def add(part: list[Digest]) -> None:
        for digest in part:
            journal.add(digest)

    threads = [threading.Thread(target=add, args=(DIGESTS[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert suspects(tmp_path) == set(DIGESTS)


# Several processes


def beside(tmp_path: Path, slot: int, suspects: tuple[Digest, ...] = ()) -> Unsettled:
    """The journal of a worker."""
    made = Unsettled(tmp_path / f"unsettled.{slot}", FaultyFiles())
    made.resume(suspects)
    return made


def test_a_crash_of_all_suspects_what_any_of_them_wrote(journal: Unsettled, tmp_path: Path) -> None:
    """The first of the next processes reads every journal, and moves them into its own."""
    journal.add(DIGESTS[0])
    beside(tmp_path, 0).add(DIGESTS[1])
    beside(tmp_path, 11).add(DIGESTS[2])
    (tmp_path / "unsettled.elsewhere").write_text(f"\n{DIGESTS[3]}")

    after = Unsettled(tmp_path / "unsettled", FaultyFiles())

    assert after.load(gather=True) == 3
    assert set(after.suspects) == set(DIGESTS[:3])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unsettled", "unsettled.elsewhere"]
    assert suspects(tmp_path) == set(DIGESTS[:3])


def test_gathered_lines_are_safe_before_the_others_go(journal: Unsettled, disk: FaultyFiles, tmp_path: Path) -> None:
    """A power loss at any moment leaves each of them in one journal at least."""
    beside(tmp_path, 1).add(DIGESTS[1])
    disk.log.clear()

    assert journal.load(gather=True) == 1

    changes = [method for method, _ in disk.log if method in ("write", "fsync", "rename", "fsync_directory", "unlink")]
    assert changes == ["write", "fsync", "rename", "fsync_directory", "fsync", "unlink"]


def test_what_cannot_be_gathered_is_suspect_all_the_same(journal: Unsettled, disk: FaultyFiles, tmp_path: Path) -> None:
    """A full disk keeps nobody from beginning; a clean stop forgets nothing that was not verified."""
    journal.add(DIGESTS[0])
    beside(tmp_path, 1).add(DIGESTS[1])
    disk.fail(errno.ENOSPC, "write")
    assert journal.load(gather=True) == 2
    worker = beside(tmp_path, 1, journal.suspects)
    worker.add(DIGESTS[2])

    worker.settle(DIGESTS[0])
    worker.clear()
    journal.settle(DIGESTS[0])
    journal.clear()

    assert suspects(tmp_path) == {DIGESTS[1]}


def test_who_is_started_again_suspects_what_it_is_told_to(tmp_path: Path) -> None:
    """What a worker wrote before it died is whole while the machine stays up, and in doubt when the power fails."""
    beside(tmp_path, 1).add(DIGESTS[0])

    again = beside(tmp_path, 1, (DIGESTS[5],))
    again.add(DIGESTS[1])

    assert again.suspects == (DIGESTS[5],)
    assert suspects(tmp_path) == set(DIGESTS[:2])
    again.clear()
    assert suspects(tmp_path) == set()


def test_a_worker_that_is_started_again_compacts_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the suspects, which another journal keeps, but what its lives have written last."""
    monkeypatch.setattr(unsettled, "_COMPACT_AT", 20)
    monkeypatch.setattr(unsettled, "_KEEP", 5)
    for start in range(1, 41, 8):
        worker = beside(tmp_path, 1, (DIGESTS[0],))
        for digest in DIGESTS[start : start + 8]:
            worker.add(digest)

    lines = (tmp_path / "unsettled.1").read_text().split()
    assert len(lines) <= 20
    assert lines[-5:] == [str(digest) for digest in DIGESTS[36:41]]
    assert str(DIGESTS[0]) not in lines


def test_who_wants_to_know_hears_what_is_settled(journal: Unsettled, tmp_path: Path) -> None:
    """Once for each suspect, so that nobody else verifies it again."""
    journal.add(DIGESTS[0])
    worker = beside(tmp_path, 1, (DIGESTS[0],))
    heard: list[Digest] = []
    worker.settled = heard.append

    for _ in range(2):
        worker.settle(DIGESTS[0])
    worker.settle(DIGESTS[1])

    assert heard == [DIGESTS[0]]
