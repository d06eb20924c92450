"""Files that change are noticed: whatever way they change, and once for each change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirror.config import Settings, Tls, UpstreamSettings
from mirror.watching import Watching, named_files
from tests.storing import until


class Looks:
    """The files of a watch: counts the looks, and the changes that it was told of."""

    def __init__(self, *paths: Path) -> None:
        self.paths = list(paths)
        self.looks = 0
        self.changes = 0

    def __call__(self) -> Iterable[Path]:
        self.looks += 1
        return self.paths

    def changed(self) -> None:
        self.changes += 1

    async def looked(self, times: int = 2) -> None:
        """Waits for so many looks more: one of them began after now, and has been compared."""
        wanted = self.looks + times
        await until(lambda: self.looks >= wanted, 20)


@asynccontextmanager
async def watched(looks: Looks) -> AsyncIterator[None]:
    """While it looks, every millisecond."""
    task = asyncio.create_task(Watching(looks, looks.changed, every=0.001).run())
    await looks.looked()
    yield
    task.cancel()
    await asyncio.wait([task])


def rewrite(path: Path) -> None:
    path.write_text("another one")


def replace(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text("text")
    fresh.rename(path)


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


@pytest.mark.parametrize("change", [rewrite, replace, touch, Path.unlink])
async def test_a_change_is_told_once(change: Callable[[Path], object], tmp_path: Path) -> None:
    """Of a file that is written anew, or replaced, or only touched, or gone."""
    file = tmp_path / "file"
    file.write_text("text")
    looks = Looks(file)
    async with watched(looks):
        assert looks.changes == 0
        change(file)
        await looks.looked()
        assert looks.changes == 1
        await looks.looked(5)
    assert looks.changes == 1


async def test_a_link_that_is_turned_round_is_a_change(tmp_path: Path) -> None:
    """So does Kubernetes: the file is a link into a directory that is one, too."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    (tmp_path / "data").symlink_to("first")
    (tmp_path / "file").symlink_to("data/file")
    looks = Looks(tmp_path / "file")
    async with watched(looks):
        (tmp_path / "fresh").symlink_to("second")
        (tmp_path / "fresh").rename(tmp_path / "data")
        await looks.looked()
    assert looks.changes == 1


async def test_what_is_named_anew_is_no_change_yet(tmp_path: Path) -> None:
    """The configuration that names it has just been read, and the file with it."""
    file, later = tmp_path / "file", tmp_path / "later"
    file.write_text("text")
    later.write_text("text")
    looks = Looks(file)
    async with watched(looks):
        looks.paths.append(later)
        await looks.looked()
        assert looks.changes == 0
        rewrite(later)
        await looks.looked()
    assert looks.changes == 1


def test_the_files_that_a_configuration_names() -> None:
    """Those of certificates; passwords are read when they are needed."""
    settings = Settings(
        tls=Tls(certificate=Path("/c"), key=Path("/k"), client_ca=None),
        upstreams={"a.test": UpstreamSettings(ca_file=Path("/a")), "b.test": UpstreamSettings()},
    )

    assert named_files(settings) == [Path("/c"), Path("/k"), Path("/a")]
    assert named_files(Settings()) == []
