"""The data directory: whose it is, and whether it is still there."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mirror.oci.errors import StorageError
from mirror.store.home import Home
from mirror.store.lock import DataLock
from tests.volumes import volume


async def refusal(home: Home) -> int | None:
    """Why the directory is not found: the number of the disk's error."""
    with pytest.raises(StorageError) as caught:
        await home.find()
    assert isinstance(caught.value.__cause__, OSError)
    return caught.value.__cause__.errno


async def test_the_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    """Whoever else is on the machine, private images are not for him; a second process is told who has it."""
    home = Home(tmp_path / "new" / "data")
    await home.take()

    assert (tmp_path / "new" / "data").stat().st_mode & 0o077 == 0
    home.check()
    assert not await home.find()
    with pytest.raises(StorageError, match="in use by process"):
        await Home(tmp_path / "new" / "data").take()

    await home.release()
    await home.release()
    DataLock.take(tmp_path / "new" / "data").release()


async def test_a_directory_that_was_moved_away_is_gone_until_it_is_back(tmp_path: Path) -> None:
    """Nothing is made in its place, which it may want back."""
    path, away = tmp_path / "data", tmp_path / "away"
    home = Home(path)
    await home.take()
    path.rename(away)

    assert await refusal(home) == errno.ENODEV
    with pytest.raises(OSError, match="gone"):
        home.check()
    assert not path.exists()

    away.rename(path)
    assert not await home.find()
    home.check()
    await home.release()


async def test_another_directory_in_its_place_is_locked_before_it_is_ours(tmp_path: Path) -> None:
    """Not one that somebody else uses; the old one is let go."""
    path, away = tmp_path / "data", tmp_path / "away"
    home = Home(path)
    await home.take()
    path.rename(away)
    path.mkdir()
    other = DataLock.take(path)

    assert await refusal(home) == errno.EBUSY

    other.release()
    assert await home.find()
    assert await home.find(), "nobody may have heard the answer"
    home.accept()
    assert not await home.find()
    with pytest.raises(StorageError, match="in use"):
        DataLock.take(path)
    DataLock.take(away).release()
    await home.release()


async def test_a_bare_mount_point_is_not_the_volume(tmp_path: Path) -> None:
    """What was a mount at the start has to be one again: the file system below is somebody else's."""
    with volume(tmp_path / "volume", "1m") as top:
        home = Home(top)
        await home.take()
    assert await refusal(home) == errno.ENODEV
    assert list(top.iterdir()) == []

    top.rmdir()
    with volume(top, "1m"):
        assert await home.find()
        assert [path.name for path in top.iterdir()] == ["lock"]
        await home.release()
