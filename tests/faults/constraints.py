"""Which combinations make no sense, each with the reason; all others are rows of the table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

from tests.faults.grammar import AUDIENCES, KINDS, MOMENTS, Row
from tests.faults.troubles import TROUBLES
from tests.pairs import pairwise

_MANIFESTS = ("tag", "digest", "head-manifest", "old-tag")
_LISTS = ("tags", "referrers", "old-tags", "old-referrers")
_HEADS = ("head-manifest", "head-blob")
_RANGES = tuple(name for name in TROUBLES if name.startswith("range-"))
_NO_DIGEST = (*_LISTS, "token")


@dataclass(frozen=True, slots=True)
class Constraint:
    """Rows that are left out; an empty factor means any value of it."""

    reason: str
    troubles: Collection[str] = ()
    moments: Collection[str] = ()
    kinds: Collection[str] = ()

    def __contains__(self, row: Row) -> bool:
        return (
            (not self.troubles or row.trouble in self.troubles)
            and (not self.moments or row.moment in self.moments)
            and (not self.kinds or row.kind in self.kinds)
        )


_BODY_MOMENTS = ("first", "middle", "last")

CONSTRAINTS = (
    *(
        Constraint(
            "it happens at other moments",
            [name],
            [moment for moment in MOMENTS if moment not in trouble.moments],
        )
        for name, trouble in TROUBLES.items()
        if set(trouble.moments) != set(MOMENTS)
    ),
    Constraint("the answer to a HEAD has no body", moments=_BODY_MOMENTS, kinds=_HEADS),
    Constraint(
        "only blobs are resumed; whatever else breaks is asked for anew",
        moments=["resume"],
        kinds=[name for name in KINDS if name not in ("blob", "range", "token")],
    ),
    Constraint(
        "a list and a token have no digest that tells it",
        ["flip", "flip-once", "surplus-declared", "surplus-chunked", "cut-whole", "cut-unsized"],
        kinds=_NO_DIGEST,
    ),
    Constraint(
        "by a tag, and in a list, it is what the upstream says that there is",
        ["other"],
        kinds=[name for name in KINDS if name not in ("digest", "blob", "range")],
    ),
    Constraint("lists and tokens come without a digest", ["no-digest", "wrong-digest"], kinds=_NO_DIGEST),
    Constraint(
        "only a manifest is asked for in words of its own",
        ["strict-accept", "quota"],
        kinds=[name for name in KINDS if name not in _MANIFESTS],
    ),
    Constraint("a CDN serves content only", ["signed", "signed-expired"], kinds=_NO_DIGEST),
    Constraint(
        "only a HEAD has a length without a body to it",
        ["doubled-length"],
        kinds=[name for name in KINDS if name not in _HEADS],
    ),
    Constraint("an answer without a body is compressed by nothing", ["gzip"], kinds=_HEADS),
    Constraint(
        "only parts of blobs are asked for as ranges",
        [*_RANGES, "416"],
        kinds=[name for name in KINDS if name not in ("blob", "range")],
    ),
    Constraint(
        "a blob is a range only when it is resumed",
        [name for name in _RANGES if name != "range-unasked"],
        moments=["before"],
        kinds=["blob"],
    ),
    Constraint("what resumes is a range, and a part is one", ["range-unasked"], moments=["resume"]),
    Constraint("what asks for a part asks for a range", ["range-unasked"], kinds=["range"]),
    Constraint("only lists have pages", ["link-loop"], kinds=[name for name in KINDS if name not in _LISTS]),
    Constraint("it means that there is no such API: an answer", ["405"], kinds=["referrers", "old-referrers"]),
    Constraint("tokens come from where the registry is: an outage of both", ["outage", "refused"], kinds=["token"]),
)


def reason_against(row: Row) -> str | None:
    """Why a combination is left out; None for a row of the table."""
    return next((constraint.reason for constraint in CONSTRAINTS if row in constraint), None)


def every_row() -> list[Row]:
    """The whole table."""
    rows = (Row(*values) for values in product(TROUBLES, MOMENTS, AUDIENCES, KINDS))
    return [row for row in rows if reason_against(row) is None]


def covering_rows() -> list[Row]:
    """Few rows in which every two values meet that meet in the whole table."""
    return [Row(*values) for values in pairwise(row.values for row in every_row())]
