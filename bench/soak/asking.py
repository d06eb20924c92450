"""One request of a client of the long run: sent, read, judged, and counted whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDictProxy

from bench.soak.tally import Outcome, Tally

LATE_SECONDS = 60.0
_HONEST = (429, 500, 502, 503, 504)
_PIECE = 16 << 10


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that came whole."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def verified(self) -> bool:
        """Whether it came from what the mirror holds, so that every byte of it was compared with the digest."""
        return self.headers.get("X-Cache") == "hit"


Judge = Callable[[Answer], Outcome]
Piece = Callable[[int, bytes], bool]
"""Whether the bytes at an offset are right."""


class Asker:
    """Sends the requests of all clients."""

    def __init__(self, session: aiohttp.ClientSession, url: str, tally: Tally) -> None:
        self._session = session
        self._url = url
        self._tally = tally

    async def ask(
        self, what: str, path: str, judge: Judge, *, method: str = "GET", status: int = 200, **headers: str
    ) -> Answer | None:
        """One request, whose answer has to have `status` and be to the taste of `judge`; returns that if it is.

        Header names with `_` for `-`.
        """
        found: Answer | None = None

        async def read(response: aiohttp.ClientResponse) -> Outcome:
            nonlocal found
            answer = Answer(response.status, response.headers, await response.read())
            self._tally.read += len(answer.body)
            outcome = _judged(answer, judge, status)
            found = answer if outcome is Outcome.RIGHT else None
            return outcome

        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self._counted(what, method, path, named, read)
        return found

    async def leave(self, what: str, path: str, right: Piece, *, after: int, pause: float) -> None:
        """A GET that ends after so many bytes, taken in small pieces with a `pause` after each."""

        async def read(response: aiohttp.ClientResponse) -> Outcome:
            if response.status != 200:
                await response.read()
                return Outcome.REFUSED if response.status in _HONEST else Outcome.ODD
            position = 0
            while position < after:
                data = await response.content.read(_PIECE)
                if not data:
                    return Outcome.RIGHT
                if not right(position, data):
                    return Outcome.WRONG
                position += len(data)
                self._tally.read += len(data)
                await asyncio.sleep(pause)
            response.close()
            return Outcome.LEFT

        await self._counted(what, "GET", path, {}, read)

    async def _counted(
        self,
        what: str,
        method: str,
        path: str,
        headers: dict[str, str],
        read: Callable[[aiohttp.ClientResponse], Awaitable[Outcome]],
    ) -> None:
        words = f"{method} {path} {headers or ''}"
        try:
            async with (
                asyncio.timeout(LATE_SECONDS),
                self._session.request(method, self._url + path, headers=headers) as response,
            ):
                words += f" → {response.status} {response.headers.get('X-Cache', '')}"
                outcome = await read(response)
        except TimeoutError:
            outcome = Outcome.LATE
        except aiohttp.ClientConnectorError as error:
            outcome, words = Outcome.UNREACHABLE, f"{words}: {error}"
        except aiohttp.ClientError:
            outcome = Outcome.CUT
        self._tally.note(what, outcome, words)


def _judged(answer: Answer, judge: Judge, status: int) -> Outcome:
    if answer.status == status:
        return judge(answer)
    if answer.status in _HONEST and answer.headers.get("Content-Type", "").startswith("application/json"):
        return Outcome.REFUSED
    return Outcome.ODD
