"""What is wrong with our disk at the moment: noted once, logged once, shown in `/readyz` and in a metric."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable

import structlog

from mirror.metrics import Metrics
from mirror.oci.errors import StorageError

FULL = "full"
"""The reason of a disk that takes no more bytes, and can be read."""
LOST = "lost"
"""The reason of a volume that is gone."""

_BACKOFF_SECONDS = 5.0
_ERRNO = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EROFS: "read_only",
    errno.EIO: "io_error",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ETIMEDOUT: "slow",
    errno.EBUSY: "locked",
    # A volume that is gone: its directory is missing, is another one, or belongs to a device that is away.
    errno.ENOENT: LOST,
    errno.ENOTDIR: LOST,
    errno.ENODEV: LOST,
    errno.ENXIO: LOST,
    errno.ESTALE: LOST,
}
_SQLITE = {
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_IOERR_SHMSIZE: FULL,
    sqlite3.SQLITE_READONLY: "read_only",
    sqlite3.SQLITE_PERM: "permission",
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
}
_log = structlog.get_logger()


class Trouble:
    """Reasons why the disk cannot be used, by the part that met them: `blobs` or `records`.

    After a failure the disk is left alone for a few seconds (`usable` is False) and then tried again: a volume may
    come back at any time.
    """

    def __init__(self, metrics: Metrics, monotonic: Callable[[], float]) -> None:
        self._metrics = metrics
        self._monotonic = monotonic
        self._reasons: dict[str, str] = {}
        self._rest_until: dict[str, float] = {}

    def note(self, part: str, error: BaseException) -> None:
        """Remembers that `part` failed with `error`; a full budget (a StorageError without cause) is no failure."""
        if isinstance(error, StorageError) and error.__cause__ is None:
            return
        reason = reason_of(error)
        self._rest_until[part] = self._monotonic() + _BACKOFF_SECONDS
        previous = self._reasons.get(part)
        if previous == reason:
            return
        self._reasons[part] = reason
        self._show(previous)
        self._show(reason)
        _log.error("storage degraded; what it cannot do is passed by", part=part, reason=reason, error=str(error))

    def clear(self, part: str) -> None:
        """Remembers that `part` works again."""
        reason = self._reasons.pop(part, None)
        if reason is None:
            return
        self._rest_until.pop(part, None)
        self._show(reason)
        _log.info("storage recovered", part=part, reason=reason)

    def met_by(self, part: str) -> str | None:
        """The reason of the trouble that `part` is in; None where it is in none."""
        return self._reasons.get(part)

    def usable(self, part: str) -> bool:
        """False while `part` rests after a failure."""
        return self._monotonic() >= self._rest_until.get(part, 0.0)

    @property
    def reasons(self) -> list[str]:
        """The parts in trouble, as `part: reason`."""
        return [f"{part}: {reason}" for part, reason in sorted(self._reasons.items())]

    def _show(self, reason: str | None) -> None:
        if reason is not None:
            self._metrics.storage_degraded.labels(reason=reason).set(reason in self._reasons.values())


def reason_of(error: BaseException) -> str:
    """A short constant for a failure of the disk, for metrics and logs."""
    # A StorageError was raised from the disk's own error; diskcache and a failed rollback hide SQLite's behind theirs.
    for cause in (error, error.__cause__, error.__context__):
        if isinstance(cause, OSError) and cause.errno in _ERRNO:
            return _ERRNO[cause.errno]
        if isinstance(cause, sqlite3.Error):
            code = getattr(cause, "sqlite_errorcode", 0)
            if reason := _SQLITE.get(code) or _SQLITE.get(code & 0xFF):
                return reason
    return "io_error"
