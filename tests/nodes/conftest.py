"""A node's file system in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.nodes.root import Root


class Node:
    """`top` is where it is mounted; paths are the node's own."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = Root(top)

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """A file that is there before us."""
        where = self.top / path.lstrip("/")
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(content if isinstance(content, bytes) else content.encode())
        where.chmod(mode)

    def text(self, path: str) -> str:
        """What is there."""
        return (self.top / path.lstrip("/")).read_text()

    def tree(self) -> dict[str, tuple[int, bytes | None]]:
        """All that there is: by path, permission bits, and of files the content."""
        return {
            str(path.relative_to(self.top)): (path.stat().st_mode, path.read_bytes() if path.is_file() else None)
            for path in sorted(self.top.rglob("*"))
        }


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """With a directory of settings, and nothing in it."""
    top = tmp_path / "node"
    (top / "etc").mkdir(parents=True)
    return Node(top)
