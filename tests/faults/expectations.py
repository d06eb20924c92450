"""What the design says of each row: the first rule that fits. Written from the design, not from what was seen.

No answer (a broken connection, silence, 429, 5xx, nonsense) is an error, or the expired copy where there is one. A no
(401, 403, 404) is passed on, never papered over. What broke is tried again and resumed, so that what happens once is
not noticed. Bytes that have not their digest reach nobody as a whole body.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tests.faults.grammar import KINDS, MANY, SIZE, Row

Some = Collection[str]

_ENDS_EARLY = ("cut-unsized", "cut-whole")
_BROKEN = ("reset", "closed", "outage", "refused", "cut-chunked")
_THROTTLED = ("429", "429-long", "quota")
_NONSENSE = ("garbage", "400", "405", "416", "page", "signed-expired", "loop", "nowhere", "range-unasked")
_NO_ANSWER = (*_BROKEN, *_THROTTLED, *_NONSENSE, "500", "503", "503-page", "wrong-retry", "stall")
_REFUSED = ("401", "403")
_MISSING = ("404", "404-name")
_TOO_MUCH = ("surplus-declared", "surplus-chunked")
WRONG = ("flip", "other", *_TOO_MUCH, *_ENDS_EARLY)
"""Troubles that bring bytes which have not their digest."""
_CUT = ("reset", "closed", "cut-chunked", *_ENDS_EARLY)
_BODY = ("first", "middle", "last")
_MANIFESTS = ("tag", "digest")
_READ_WHOLE = (*_MANIFESTS, "tags", "referrers", "token")
_OLD = ("old-tag", "old-tags", "old-referrers")

_TRIES = 4
"""Of one question."""
_ANEW = 2
"""A connection that was kept, and turns out to be closed, is no try."""
_QUESTIONS = 3
"""HEAD, GET, and a second one after wrong bytes."""
_RESUMES = 40
"""Requests for one blob within `no_progress`."""
_SMALL = 4000
_WASTEFUL = ("gzip", "other", "surplus", *_TOO_MUCH, "range-unasked")
"""What is thrown away has been sent all the same, as far as the kernels took it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What clients may hear, and why; an empty factor means any value of it.

    afterwards: what may be heard for a while once the trouble is over, because it was an answer
    """

    words: frozenset[str]
    because: str
    troubles: Some
    kinds: Some
    moments: Some
    afterwards: frozenset[str]

    def __contains__(self, row: Row) -> bool:
        return (
            (not self.troubles or row.trouble in self.troubles)
            and (not self.moments or row.moment in self.moments)
            and (not self.kinds or row.kind in self.kinds)
        )


def _rule(
    words: str, because: str, troubles: Some = (), *, kinds: Some = (), moments: Some = (), afterwards: str = ""
) -> Rule:
    return Rule(frozenset(words.split()), because, troubles, kinds, moments, frozenset(afterwards.split()))


_CLAIM = "a HEAD repeats what the upstream claims; the bytes put it right"
_ONE_WAY = "a part comes from the fill or by a request of its own, and one of them may do"
_NO_PROMISE = "a part of what is not verified yet makes no promise"
_PACKETS = "depends on whether the surplus comes in one packet with the rest"

RULES = (
    # Claims.
    _rule("claim", _CLAIM, ["doubled-length"], kinds=["head-blob", "head-manifest"], afterwards="claim"),
    _rule("claim", _CLAIM, ["wrong-digest"], kinds=["head-manifest"], afterwards="claim"),
    _rule(
        "empty",
        "what is no index means that there is no API; the tag in its place is asked then",
        ["400", "page", "no-type", "wrong-type"],
        kinds=["referrers"],
        afterwards="empty",
    ),
    _rule(
        "stale",
        "there was an API, and what is no index is no answer of its",
        ["400", "page", "no-type", "wrong-type"],
        kinds=["old-referrers"],
    ),
    # No.
    _rule("503", "no token is no answer", [*_REFUSED, *_MISSING], kinds=["token"], moments=["before"]),
    _rule("403", "a refusal is passed on, copy or not", _REFUSED, moments=["before"]),
    _rule("404", "what is not there, is not; remembered for a while", _MISSING, moments=["before"], afterwards="404"),
    _rule("right cut", _ONE_WAY, [*_REFUSED, *_MISSING], kinds=["range"], moments=["resume"], afterwards="404"),
    _rule("cut", "the headers have left, the rest is refused", [*_REFUSED, *_MISSING], afterwards="404"),
    # No answer, with a copy in hand.
    _rule("right stale", "the second try may come too late", ["stall-once"], kinds=_OLD),
    _rule("right stale", _PACKETS, ["surplus"], kinds=_OLD),
    _rule("stale", "no answer, or none in time", _NO_ANSWER, kinds=_OLD),
    _rule("stale", "wrong bytes are no answer", WRONG, kinds=_OLD),
    _rule("stale", "a compressed list is none that we read", ["gzip"], kinds=["old-tags", "old-referrers"]),
    # No answer, and no copy.
    _rule(
        "503",
        "a compressed list or token is none that we read",
        ["gzip"],
        kinds=["tags", "referrers", "token"],
        moments=["before"],
    ),
    _rule("504", "silence", ["stall"], moments=["before"]),
    _rule("429", "we are asked to slow down, and pass that on", ["429", "429-long"], moments=["before"]),
    _rule("right", "a HEAD costs nothing", ["quota"], kinds=["head-manifest"]),
    _rule("429 504", "the pauses grow until time is up", ["quota"], moments=["before"]),
    _rule("503", "no answer", _NO_ANSWER, moments=["before"]),
    _rule("503 504", "silence", ["stall"], kinds=_READ_WHOLE, moments=_BODY),
    _rule("503", "it breaks each time", _BROKEN, kinds=_READ_WHOLE, moments=_BODY),
    _rule("right 503", _PACKETS, ["surplus"], kinds=_READ_WHOLE, moments=_BODY),
    # Wrong bytes.
    _rule("502", "wrong bytes, twice", WRONG, kinds=_MANIFESTS),
    _rule("right wrong", _NO_PROMISE, ["flip", "flip-once", "other", "range-shifted"], kinds=["range"]),
    _rule("cut", "the end waits for the digest", ["flip", "flip-once", "other", "surplus-declared"], kinds=["blob"]),
    # What breaks is resumed, as long as that brings something.
    _rule("right", "each try brings some of it", _CUT, kinds=["range"], moments=["middle", "resume"]),
    _rule(
        "right cut 503 504",
        _ONE_WAY,
        [*_NO_ANSWER, *_CUT, "surplus", *_TOO_MUCH, "trickle", "gzip"],
        kinds=["range"],
        moments=[*_BODY, "resume"],
    ),
    _rule("right", "each try brings some of it", [*_CUT, "stall"], kinds=["blob"], moments=["middle", "resume"]),
    _rule("right cut", _PACKETS, ["surplus"], kinds=["blob", "token"], moments=["resume"]),
    _rule(
        "cut",
        "the headers have left, the rest does not come",
        [*_NO_ANSWER, *_CUT, "gzip"],
        kinds=["blob", "token"],
        moments=[*_BODY, "resume"],
    ),
    _rule("cut", "the headers have left, the rest comes too slowly", ["trickle"], kinds=["blob"]),
    # All else is coped with.
    _rule("right", "what happens once, or breaks no promise, is not noticed"),
)


def rule_of(row: Row) -> Rule:
    """The rule that a row is held to."""
    return next(rule for rule in RULES if row in rule)


def most_requests(row: Row) -> int:
    """How often the upstream may be asked at most while it is in trouble; twenty clients are no reason for more."""
    hops = {"loop": 6, "signed": 2, "signed-expired": 2}.get(row.trouble, 1)
    if row.kind == "range":  # but each may ask for his part himself
        return hops * _RESUMES * (1 + (MANY if row.audience == "many" else 1))
    if row.kind == "blob" or row.moment == "resume":
        return hops * _RESUMES
    return hops * _QUESTIONS * _TRIES * _ANEW


def most_bytes(row: Row) -> int:
    """How many bytes of content the upstream may send meanwhile: what has come is not asked for again."""
    if KINDS[row.kind].asked != "blob":
        return most_requests(row) * (SIZE if row.trouble == "other" else _SMALL)
    # Who tells no length may have told a wrong one in his HEAD: that is worth another attempt.
    twice = row.trouble in ("flip-once", "cut-chunked", *WRONG) or row.trouble.startswith("range-")
    fetches = float(_RESUMES) if row.trouble in _WASTEFUL else 2.1 if twice else 1.1
    if row.kind == "range":
        fetches *= 2 * (1 + (MANY if row.audience == "many" else 1))
    return int(fetches * SIZE)
