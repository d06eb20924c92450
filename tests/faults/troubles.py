"""Everything that the fake upstream can do wrong, and the moments at which it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.faults.grammar import SIZE
from tests.upstream import (
    Fault,
    content_type,
    delay,
    flip,
    garbage,
    gzipped,
    header,
    html,
    ignore_range,
    instead,
    no_digest,
    no_length,
    quota,
    redirect,
    redirect_loop,
    redirect_to,
    refuse,
    reset,
    stall,
    stall_at,
    status,
    strict_accept,
    too_much,
    trickle,
    truncate,
    unasked_206,
    wrong_206,
    wrong_digest,
    wrong_length,
)
from tests.upstream.content import make_blob

_SOMETHING_ELSE = make_blob(SIZE, seed="something else", media_type="application/octet-stream")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the body it happens: `at` bytes from the start of the answer (from its end where negative), `where` in
    the whole content. None, 0: before the body."""

    at: int | None
    where: int


@dataclass(frozen=True, slots=True)
class Trouble:
    """One thing that goes wrong, for good, or for the next `times` requests."""

    does: str
    """In an operator's words."""
    moments: tuple[str, ...]
    spoils: Callable[[Place], Fault] | None
    """None: it is the connection that suffers, see `scene`."""
    times: int | None = None


_ANSWER = ("before", "resume")
_PLACES = ("first", "middle", "last", "resume")
_ANY = ("before", *_PLACES)


def _said(does: str, fault: Callable[[], Fault], *, times: int | None = None) -> Trouble:
    """Something wrong with status or headers."""
    return Trouble(does, _ANSWER, lambda _: fault(), times)


def _sent(does: str, fault: Callable[[int], Fault], *moments: str, times: int | None = None) -> Trouble:
    """Something wrong from a byte of the body on."""
    return Trouble(does, moments or _PLACES, lambda place: fault(place.at or 0), times)


TROUBLES: Mapping[str, Trouble] = {
    # No connection.
    "outage": Trouble("nobody listens any more", ("before", "first", "middle", "last"), None),
    "refused": Trouble("connections are reset as soon as they are made", ("before", "resume"), None),
    # The connection breaks, or nothing comes.
    "reset": Trouble("resets the connection", _ANY, lambda place: reset(place.at)),
    "reset-once": Trouble("resets the connection, once", _ANY, lambda place: reset(place.at), times=1),
    "closed": Trouble(
        "closes the connection", _ANY, lambda place: refuse() if place.at is None else truncate(place.at)
    ),
    "cut-unsized": _sent("ends a body of unknown length", lambda at: truncate(at, "close")),
    "cut-chunked": _sent("ends a chunked body without its last chunk", lambda at: truncate(at, "chunked")),
    "cut-whole": _sent("ends a chunked body as if it were whole", lambda at: truncate(at, "chunked-complete")),
    "stall": Trouble("sends nothing more", _ANY, lambda place: stall() if place.at is None else stall_at(place.at)),
    "stall-once": Trouble(
        "sends nothing more, once", _ANY, lambda place: stall() if place.at is None else stall_at(place.at), times=1
    ),
    "slow-headers": _said("takes its time, within `try`", lambda: delay(0.1)),
    "trickle": _sent("sends less than `min_rate`", lambda _: trickle(1000), "first", "resume"),
    "garbage": _said("speaks something else than HTTP", garbage),
    # Wrong bytes.
    "flip": Trouble("sends a wrong byte", _PLACES, lambda place: flip(place.where)),
    "flip-once": Trouble("sends a wrong byte, once", _PLACES, lambda place: flip(place.where), times=1),
    "other": _said("sends something else under the right digest", lambda: instead(_SOMETHING_ELSE)),
    "surplus": _sent("sends more than Content-Length", lambda _: too_much(), "last", "resume"),
    "surplus-declared": _sent("has bytes too many, and says so", lambda _: too_much(framing="declared"), "last"),
    "surplus-chunked": _sent("has bytes too many, in chunks", lambda _: too_much(framing="chunked"), "last"),
    # Lengths, encodings and ranges.
    "chunked": _said("tells no length", no_length),
    "unsized": _said("tells no length, closes at the end", lambda: no_length("close")),
    "doubled-length": _said("doubles the length in a HEAD", wrong_length),
    "gzip": _said("compresses what must not be", gzipped),
    "range-ignored": _said("ignores ranges", ignore_range),
    "range-unasked": _said("answers 206 without being asked for a part", unasked_206),
    "range-start": _said("gives a range one byte later", lambda: wrong_206("start")),
    "range-end": _said("gives less of a range, and says so", lambda: wrong_206("end")),
    "range-total": _said("gives a range of another length's whole", lambda: wrong_206("total")),
    "range-missing": _said("leaves Content-Range out", lambda: wrong_206("missing")),
    "range-star": _said("gives a range of `*`", lambda: wrong_206("star")),
    "range-shifted": _said("gives other bytes than Content-Range says", lambda: wrong_206("shifted")),
    # Statuses.
    "400": _said("400", lambda: status(400)),
    "401": _said("401", lambda: status(401)),
    "403": _said("403", lambda: status(403)),
    "404": _said("404", lambda: status(404)),
    "404-name": _said("404 NAME_UNKNOWN", lambda: status(404, error="NAME_UNKNOWN")),
    "405": _said("405", lambda: status(405)),
    "416": _said("416", lambda: status(416)),
    "429": _said("429, `Retry-After` short", lambda: status(429, retry_after="50ms")),
    "429-once": _said("429 without `Retry-After`, once", lambda: status(429), times=1),
    "429-long": _said("429, `Retry-After` longer than anybody waits", lambda: status(429, retry_after=8)),
    "quota": _said("429, the pull limit", lambda: quota(remaining=0)),
    "500": _said("500", lambda: status(500)),
    "500-once": _said("500, once", lambda: status(500), times=1),
    "503": _said("503, `Retry-After` short", lambda: status(503, retry_after="50ms")),
    "503-page": _said("503 with a page for people", lambda: html(503)),
    # Headers and redirects.
    "page": _said("200 with a page for people", html),
    "no-type": _said("leaves Content-Type out", lambda: content_type(None)),
    "wrong-type": _said("lies in Content-Type", lambda: content_type("text/plain")),
    "no-digest": _said("leaves Docker-Content-Digest out", no_digest),
    "wrong-digest": _said("lies in Docker-Content-Digest", wrong_digest),
    "wrong-retry": _said("503, `Retry-After` garbled", lambda: status(503, retry_after="soon")),
    "strict-accept": _said("404 for what `Accept` does not name", strict_accept),
    "signed": _said("redirects to a signed URL", redirect),
    "signed-expired": _said("redirects to a URL that has expired", lambda: redirect(lifetime=-1)),
    "loop": _said("redirects in a circle", redirect_loop),
    "nowhere": _said("redirects to what is no URL", lambda: redirect_to("ftp://nowhere")),
    "link-loop": _said("leads to the same page of a list for ever", lambda: header("Link", '<?n=1>; rel="next"')),
}
