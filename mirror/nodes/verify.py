"""Whether a node's pulls go through the mirror: pulls an image as the kubelet does; looks at what the mirror counts.

The mirror counts for everybody. So a pull proves something only where nobody else asked the mirror for that registry
just before; where somebody did, it is tried again. That it counted nothing proves the contrary at once.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from mirror.config.names import matches, parse_host
from mirror.nodes.cri import Cri
from mirror.nodes.errors import NodeError

_HTTP_SECONDS = 5.0
_MOST_BYTES = 16 << 20
_EVERY_SECONDS = 0.05
_KINDS = frozenset({"manifest", "blob"})
_UNSERVED = frozenset({"error", "refused"})

Counts = Mapping[tuple[str, ...], float]


class CannotTell(NodeError):
    """The mirror gave no figures, or none that prove anything."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`pull`: seconds that the first pull may take. `quiet`: seconds without others that a proof wants.

    `counted`: seconds that the mirror has for counting what it answered; `tries`: how often quiet is waited for.
    """

    pull: float = 300.0
    quiet: float = 1.0
    counted: float = 3.0
    tries: int = 10


@dataclass(frozen=True, slots=True)
class Verdict:
    """`seen` is whether the mirror answered the node's pull of `image`; `answers` is how often, `runtime` by whom."""

    image: str
    runtime: str
    seen: bool
    answers: int

    @property
    def text(self) -> str:
        """The same in words."""
        if self.seen:
            return f"seen: the mirror answered {self.runtime} {self.answers} times for a pull of {self.image}"
        return f"not seen: {self.runtime} pulled {self.image} and the mirror answered nothing"


class Check:
    """`verify`, for whoever runs it in a thread and may have to end it. Raises Unusable where grpcio is lacking."""

    def __init__(self, image: str, admin: str, endpoint: str, *, limits: Limits | None = None) -> None:
        self._image, self._admin, self._limits = image, admin, limits
        self._cri = Cri(endpoint)
        self._over = threading.Event()

    def run(self) -> Verdict:
        """What came out. Raises NodeError where nothing did, as after `stop`."""
        return verify(self._image, self._admin, self._cri, limits=self._limits, sleep=self._over.wait)

    def stop(self) -> None:
        """Ends what runs, soon, and for good."""
        self._over.set()
        self._cri.close()


def default_admin(mirror: str) -> str:
    """The admin port of the mirror with this canonical URL, if nobody moved it."""
    host = urlsplit(mirror).hostname or ""
    return f"http://{f'[{host}]' if ':' in host else host}:5001"


def parse_image(text: str) -> str:
    """An image's full name. Raises ValueError, whose message is what was expected.

    The registry has to be said: the mirror counts by registry.
    """
    host, slash, rest = text.partition("/")
    if slash and rest and ("." in host or ":" in host or host == "localhost") and not any(map(str.isspace, text)):
        try:
            parse_host(host)
            return text
        except ValueError:
            pass
    raise ValueError("an image with its registry, as docker.io/library/busybox:1.37")


def verify(
    image: str,
    admin: str,
    cri: Cri,
    *,
    clean: bool = False,
    limits: Limits | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Verdict:
    """Pulls `image` through the runtime, and again where it is held: a runtime asks anew what the tag means.

    `admin` is the URL of the mirror's admin port. The image stays on the node; with `clean` it is removed where it was
    not there before. Raises CannotTell, and CriError where the runtime cannot pull.
    """
    limits = limits or Limits()
    host = parse_host(image.partition("/")[0])
    _counts(admin, host)  # a mirror that gives no figures is told of before anything is pulled
    runtime = cri.version()
    was_there = cri.holds(image)
    try:
        cri.pull(image, seconds=limits.pull)
        answers = _count_a_pull(image, admin, host, cri, limits, sleep)
        return Verdict(image, runtime, answers > 0, answers)
    finally:
        if clean and not was_there:
            cri.remove(image)


def _count_a_pull(image: str, admin: str, host: str, cri: Cri, limits: Limits, sleep: Callable[[float], object]) -> int:
    """How often the mirror answered while the image, which is held, was pulled."""
    for _ in range(limits.tries):
        earlier = _counts(admin, host)
        sleep(limits.quiet)
        before = _counts(admin, host)
        cri.pull(image, seconds=limits.pull)
        answers = _await_answers(admin, host, before, limits, sleep)
        if answers == 0 or _risen(earlier, before) == 0:
            return answers
    raise CannotTell(
        f"{admin} counts others' pulls from {host} all the time, so that this node's cannot be told from them: "
        "name an image of a registry that is asked less"
    )


def _await_answers(admin: str, host: str, before: Counts, limits: Limits, sleep: Callable[[float], object]) -> int:
    """The mirror counts an answer after its last byte, which is when the runtime goes on, too."""
    deadline = time.monotonic() + limits.counted
    while (answers := _risen(before, _counts(admin, host))) == 0 and time.monotonic() < deadline:
        sleep(_EVERY_SECONDS)
    return answers


def _risen(before: Counts, after: Counts) -> int:
    """How many were counted in between; a mirror that was started anew counts from 0."""
    return int(sum(value - was if value >= (was := before.get(key, 0.0)) else value for key, value in after.items()))


def _counts(admin: str, host: str) -> dict[tuple[str, ...], float]:
    """Of the registry `host`, the requests that the mirror has served, by their labels. Raises CannotTell."""
    found = {}
    try:
        for family in text_string_to_metric_families(_metrics(admin)):
            for sample in family.samples:
                if sample.name == "mirror_requests_total" and _is_served(sample.labels, host):
                    found[tuple(sorted(sample.labels.values()))] = sample.value
    except ValueError as error:
        raise CannotTell(f"{admin}/metrics is not what a mirror gives: {error}") from None
    return found


def _is_served(labels: Mapping[str, str], host: str) -> bool:
    entry = labels.get("upstream", "")
    return (
        (entry == host or matches(entry, host))
        and labels.get("kind") in _KINDS
        and labels.get("result") not in _UNSERVED
        and labels.get("status", "").startswith(("2", "3"))
    )


def _metrics(admin: str) -> str:
    # Nobody's proxy stands between a node and its mirror.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{admin}/metrics", timeout=_HTTP_SECONDS) as answer:
            text: str = answer.read(_MOST_BYTES).decode()
            return text
    except (OSError, HTTPException) as error:
        raise CannotTell(f"{admin}/metrics cannot be read: {error}") from None
