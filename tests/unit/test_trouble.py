"""What is told of a failing disk: once, by its reason, until it works again."""

from __future__ import annotations

import errno
import os
import sqlite3

import diskcache
import pytest

from mirror.metrics import Metrics
from mirror.oci.errors import StorageError
from mirror.store.trouble import Trouble, reason_of


class Desk:
    """Trouble, with its metric and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.trouble = Trouble(self.metrics, lambda: self.now)

    def degraded(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("mirror_storage_degraded", {"reason": reason}) or 0.0


def failure(number: int) -> StorageError:
    """What the store raises where the disk fails."""
    error = StorageError("the disk failed")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "full"),
        (errno.EROFS, "read_only"),
        (errno.EIO, "io_error"),
        (errno.EACCES, "permission"),
        (errno.EMFILE, "descriptors"),
        (errno.ETIMEDOUT, "slow"),
        (errno.EBUSY, "locked"),
        (errno.ENOENT, "lost"),
        (errno.ENOTDIR, "lost"),
        (errno.ENODEV, "lost"),
        (errno.ESTALE, "lost"),
        (errno.ENOTTY, "io_error"),
    ],
)
def test_the_reason_is_a_short_constant(number: int, reason: str) -> None:
    """Of the disk's own error, wrapped in ours or not."""
    assert reason_of(failure(number)) == reason
    assert reason_of(OSError(number, "x")) == reason


def test_the_reason_of_the_database_is_found() -> None:
    """Also where another error stands in front of it."""

    def sqlite(code: int) -> sqlite3.OperationalError:
        error = sqlite3.OperationalError("x")
        error.sqlite_errorcode = code
        return error

    assert reason_of(sqlite(sqlite3.SQLITE_FULL)) == "full"
    assert reason_of(sqlite(sqlite3.SQLITE_READONLY_DBMOVED)) == "read_only"
    assert reason_of(sqlite(sqlite3.SQLITE_IOERR)) == "io_error"
    assert reason_of(sqlite(sqlite3.SQLITE_IOERR_SHMSIZE)) == "full"
    hidden = diskcache.Timeout()
    hidden.__context__ = sqlite(sqlite3.SQLITE_BUSY)
    assert reason_of(hidden) == "locked"
    failed_rollback = sqlite(sqlite3.SQLITE_ERROR)
    failed_rollback.__context__ = sqlite(sqlite3.SQLITE_FULL)
    assert reason_of(failed_rollback) == "full"
    assert reason_of(ValueError()) == "io_error"


def test_trouble_shows_until_it_is_over() -> None:
    """In the reasons and in the metric."""
    desk = Desk()
    desk.trouble.note("blobs", failure(errno.EIO))

    assert desk.trouble.reasons == ["blobs: io_error"]
    assert desk.trouble.met_by("blobs") == "io_error"
    assert desk.degraded("io_error") == 1

    desk.trouble.clear("blobs")
    desk.trouble.clear("records")

    assert desk.trouble.reasons == []
    assert not desk.trouble.met_by("blobs")
    assert desk.degraded("io_error") == 0


def test_a_full_budget_is_no_trouble() -> None:
    """An error that no disk has caused tells nothing about the disk."""
    desk = Desk()

    desk.trouble.note("blobs", StorageError("no room"))

    assert desk.trouble.reasons == []
    assert desk.trouble.usable("blobs")


def test_one_part_does_not_speak_for_another() -> None:
    """The same reason stays shown while either part has it."""
    desk = Desk()
    desk.trouble.note("blobs", failure(errno.EIO))
    desk.trouble.note("records", failure(errno.EIO))

    desk.trouble.note("blobs", failure(errno.ENOSPC))
    assert (desk.degraded("io_error"), desk.degraded("full")) == (1, 1)
    desk.trouble.clear("records")
    assert (desk.degraded("io_error"), desk.degraded("full")) == (0, 1)
    desk.trouble.clear("blobs")
    assert (desk.degraded("io_error"), desk.degraded("full")) == (0, 0)


def test_a_part_rests_after_a_failure() -> None:
    """A failing disk is left alone for a while and then tried again."""
    desk = Desk()
    desk.trouble.note("blobs", failure(errno.EIO))
    assert not desk.trouble.usable("blobs")
    assert desk.trouble.usable("records")

    desk.now += 60

    assert desk.trouble.usable("blobs")
    desk.trouble.note("blobs", failure(errno.EIO))
    desk.trouble.clear("blobs")
    assert desk.trouble.usable("blobs")


def test_trouble_is_logged_once(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """Not once per request that meets it."""
    desk = Desk()
    for _ in range(100):
        desk.trouble.note("blobs", failure(errno.EIO))

    assert capsys.readouterr().out.count("degraded") == 1
