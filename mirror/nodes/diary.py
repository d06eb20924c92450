"""What was there before we wrote: kept beside it on the node, so that it can be put back whatever happens between."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum, auto

import msgspec

from mirror.nodes.errors import Unusable
from mirror.nodes.root import OURS, Owner, Root

NAME = ".mirror-node-config.json"
_VERSION = 1


class Found(Enum):
    """What of a file in the diary is on the disk."""

    BEFORE = auto()
    OURS = auto()
    FOREIGN = auto()


class Page(msgspec.Struct):
    """One file: `before` is None where there was none; `ours` are the digests of what we may have put in its place."""

    before: bytes | None
    mode: int
    uid: int
    gid: int
    ours: list[str]

    @property
    def owner(self) -> Owner:
        """To whom it belonged."""
        return Owner(self.mode, self.uid, self.gid)

    def state(self, content: bytes | None) -> Found:
        """What a file with this content is. One that is missing may be written, and need not be put back."""
        if content == self.before:
            return Found.BEFORE
        if content is None or digest_of(content) in self.ours:
            return Found.OURS
        return Found.FOREIGN


class _Book(msgspec.Struct):
    version: int
    directories: list[str]
    pages: dict[str, Page]


@dataclass
class Diary:
    """Of one directory of the node. `directories` are those that we made, the outermost first."""

    root: Root
    directory: str
    directories: list[str] = field(default_factory=list)
    pages: dict[str, Page] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it is kept."""
        return f"{self.directory}/{NAME}"

    @classmethod
    def read(cls, root: Root, directory: str) -> Diary:
        """The one that is there, or an empty one. Raises Unusable for one that cannot be read."""
        diary = cls(root, directory)
        content = root.read(diary.path)
        if content is None:
            return diary
        try:
            book = msgspec.json.decode(content, type=_Book)
        except msgspec.DecodeError as error:
            raise Unusable(
                f"{diary.path} is broken: {error}. It says what was here before us: mend it, or remove it"
            ) from None
        if book.version != _VERSION:
            raise Unusable(f"{diary.path} is of version {book.version}; this program knows {_VERSION}")
        diary.directories, diary.pages = book.directories, book.pages
        return diary

    def write(self) -> None:
        """Keeps it; an empty one is removed."""
        if not self.pages:
            self.root.remove(self.path)
            return
        book = msgspec.json.encode(_Book(_VERSION, self.directories, self.pages))
        self.root.write(self.path, msgspec.json.format(book, indent=1), Owner(0o600, OURS.uid, OURS.gid))

    def before(self, path: str) -> bytes | None:
        """The content of a file as it is without us."""
        page = self.pages.get(path)
        return self.root.read(path) if page is None else page.before

    def note(self, path: str, content: bytes) -> bool:
        """We are about to write this; whether that is news."""
        page = self.pages.get(path)
        if page is None:
            before = self.root.read(path)
            owner = OURS if before is None else self.root.owner(path)
            page = self.pages[path] = Page(before, owner.mode, owner.uid, owner.gid, [])
        if digest_of(content) in page.ours:
            return False
        page.ours.append(digest_of(content))
        return True

    def state(self, path: str) -> Found:
        """What is there of a file in the diary."""
        return self.pages[path].state(self.root.read(path))


def digest_of(content: bytes) -> str:
    """As it stands in a diary."""
    return hashlib.sha256(content).hexdigest()
