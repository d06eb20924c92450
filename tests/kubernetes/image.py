"""The mirror as an image, made of the Python that runs the tests: it takes no build and no base image."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.e2e.images import build_of

NAME = "localhost/mirror:image"

_TOP = Path(__file__).resolve().parents[2]
_REQUIREMENT = re.compile(r"^([\w.-]+)==", re.MULTILINE)
_LIBRARY = re.compile(r"(/\S+) \(0x")
_NOT_NEEDED = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "site-packages", "dist-packages", "test", "tkinter"}


def build(layout: Path) -> list[str]:
    """Writes the image. Returns the command that is `mirror` in it."""
    python = Path(sys.executable).resolve()
    files = {python, *_standard_library(), *_requirements(), *_below(_TOP / "mirror")}
    files |= _libraries([python, *(file for file in files if ".so" in file.suffixes)])
    # Each file lies where it lies here, so that Python finds its own.
    content = {str(file).lstrip("/"): file.read_bytes() for file in sorted(files)}
    command = [str(python), "-m", "mirror"]
    build_of(layout, content, command)
    return command


def path() -> str:
    """What PYTHONPATH has to be in there."""
    return f"{_TOP}:{sysconfig.get_path('purelib')}"


def _standard_library() -> Iterator[Path]:
    yield from _below(Path(sysconfig.get_path("stdlib")))


def _requirements() -> Iterator[Path]:
    """The files of what serving takes."""
    for name in _REQUIREMENT.findall((_TOP / "requirements" / "runtime.txt").read_text()):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another version of Python than this one
        yield from (Path(str(file.locate())) for file in files if file.suffix != ".pyc" and ".." not in file.parts)


def _below(top: Path) -> Iterator[Path]:
    for entry in top.iterdir():
        if entry.is_dir() and entry.name not in _NOT_NEEDED and not entry.name.startswith("config-"):
            yield from _below(entry)
        elif entry.is_file():
            yield entry


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that the loader would find for these, and itself."""
    said = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False).stdout
    return {Path(library) for library in _LIBRARY.findall(said)}
