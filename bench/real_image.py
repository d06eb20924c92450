"""An image as people have them: layers of this machine's own files, compressed, of very different sizes."""

from __future__ import annotations

import gzip
import hashlib
import io
import platform
import tarfile
from collections.abc import Iterator
from pathlib import Path

from bench.image import Blob, Image
from bench.site import Site

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TOPS = ("/usr/lib", "/usr/share", "/usr/bin")
_SHARES = (0.5, 0.25, 0.12, 0.08, 0.04, 0.01)
"""Of the files' bytes, layer by layer."""
_LARGEST = 32 << 20
_LEVEL = 1
_BLOCK = 512  # a tar's


def real_image(site: Site, repository: str, size: int) -> Image:
    """Adds an image whose files have about `size` bytes, or as many as there are."""
    files = _files()
    layers: list[Blob] = []
    diff_ids = []
    for share in _SHARES:
        raw = _tar(files, round(size * share))
        diff_ids.append(f"sha256:{hashlib.sha256(raw).hexdigest()}")
        layers.append(site.put(repository, gzip.compress(raw, _LEVEL, mtime=0)))
    about = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return site.describe(repository, layers, about, _LAYER)


def _tar(files: Iterator[Path], size: int) -> bytes:
    """The next files, until they have so many bytes."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        while raw.tell() < size and (path := next(files, None)) is not None:
            try:
                content = path.read_bytes()
            except OSError:  # not ours to read, or gone
                continue
            entry = tarfile.TarInfo(str(path)[1:])
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return raw.getvalue()


def _files() -> Iterator[Path]:
    for top in _TOPS:
        for path in sorted(Path(top).rglob("*")):
            if path.is_file() and not path.is_symlink() and _BLOCK <= path.stat().st_size <= _LARGEST:
                yield path
