"""The words of the fault table: when something goes wrong, who is there, and what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from tests.upstream import Kind as Asked

MOMENTS: Mapping[str, str] = {
    "before": "before the first byte of the body, or instead of any answer",
    "first": "at the first byte of the body",
    "middle": "in the middle of the body",
    "last": "at the last bytes of the body",
    "resume": "in the answer to the request that resumes one that broke in the middle",
}
MANY = 20
SIZE = 200_000
"""Bytes of the blob."""
RANGE = (40_000, 139_999)
"""First and last byte of the part of it that is asked for."""

AUDIENCES: Mapping[str, str] = {
    "one": "one client",
    "many": "twenty clients at once",
    "nobody": "one client that has left by then",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What clients ask for, and which requests to the upstream meet the fault on the way."""

    words: str
    asked: Asked
    is_head: bool = False
    is_old: bool = False
    """Whether an expired copy is in hand."""


KINDS: Mapping[str, Kind] = {
    "tag": Kind("manifest by tag", "manifest"),
    "digest": Kind("manifest by digest", "manifest"),
    "blob": Kind("blob", "blob"),
    "range": Kind("part of a blob", "blob"),
    "head-manifest": Kind("HEAD of a manifest", "manifest", is_head=True),
    "head-blob": Kind("HEAD of a blob", "blob", is_head=True),
    "tags": Kind("list of tags", "tags"),
    "referrers": Kind("list of referrers", "referrers"),
    "token": Kind("manifest by tag, or a blob that is resumed, by a token", "token"),
    "old-tag": Kind("manifest by tag with an expired copy in hand", "manifest", is_old=True),
    "old-tags": Kind("list of tags with an expired copy in hand", "tags", is_old=True),
    "old-referrers": Kind("list of referrers with an expired copy in hand", "referrers", is_old=True),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `trouble` is a key of `troubles.TROUBLES`."""

    trouble: str
    moment: str
    audience: str
    kind: str

    @property
    def id(self) -> str:
        """The row's name: `reset:middle:many:blob`."""
        return ":".join(self.values)

    @property
    def values(self) -> tuple[str, str, str, str]:
        """The four factors in order."""
        return self.trouble, self.moment, self.audience, self.kind

    @classmethod
    def of(cls, name: str) -> Self:
        """The row of that name."""
        return cls(*name.split(":"))
