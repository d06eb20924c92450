"""What each registry wants to see, learned from `GET /v2/` and from its refusals."""

from __future__ import annotations

from dataclasses import dataclass

from yarl import URL

from mirror.auth.challenge import choose, own_scope, parse_challenges
from mirror.auth.credentials import Credential
from mirror.auth.realm import resolve_realm
from mirror.auth.tokens import KIND
from mirror.memory import Memory
from mirror.oci.errors import UpstreamUnavailable
from mirror.singleflight import SingleFlight
from mirror.transport import Deadline, Destination, Request, Response, Transport
from mirror.transport.request import host_of

_TTL = 3600.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What of a challenge decides how it is answered.

    `scheme` is bearer or basic, None for "nothing". `realm` is the token endpoint, `service` its parameter, `scope`
    the one to ask with where it is not the repository's. `known` is false where the registry could not be asked.
    """

    scheme: str | None = None
    realm: URL | None = None
    service: str | None = None
    scope: str = ""
    known: bool = True


NOTHING = Demand()
UNKNOWN = Demand(known=False)


class Pings:
    """Remembers demands: one per registry, and one per repository where that one's own refusal said otherwise."""

    def __init__(self, transport: Transport, memory: Memory) -> None:
        self._transport = transport
        self._memory = memory
        self._pinging = SingleFlight()

    async def demand(self, destination: Destination, repository: str, deadline: Deadline) -> Demand:
        """What a request for `repository` should show. A ping that fails is not fatal: the request itself will tell."""
        known = await self._memory.get(_key(destination, repository)) or await self._memory.get(_key(destination))
        if known is None:
            pinging = self._pinging.run(_key(destination), lambda: self._ping(destination))
            known = await deadline.bound(pinging, f"GET {destination.url.raw_host}/v2/")
        assert isinstance(known, Demand)
        return known

    async def learn(self, destination: Destination, repository: str, response: Response, sent: Demand) -> Demand:
        """What to show after a refusal of what `sent` demanded.

        A refused token may come back with no challenge, or with a Basic one (Harbor): then `sent` stays right.
        """
        heard = demand_of(response)
        if heard.scheme is None or heard == sent or (sent.scheme == "bearer" and heard.scheme != "bearer"):
            return sent
        await self._memory.set(_key(destination, repository), heard, _TTL)
        return heard

    async def doubt(self, destination: Destination, repository: str) -> None:
        """Lets `/v2/` be asked anew after a token endpoint failed, since registries move theirs; not more than once in
        a while, since endpoints also just fail."""
        mark = ("doubted", *_key(destination))
        if await self._memory.get(mark) is None:
            await self._memory.set(mark, True, 2 * self._transport.timeouts.try_)
            await self._memory.delete(_key(destination))
            await self._memory.delete(_key(destination, repository))

    async def close(self) -> None:
        """Ends the pings under way."""
        await self._pinging.close()

    async def refuses(self, destination: Destination, credential: Credential, deadline: Deadline) -> bool:
        """Whether `/v2/` itself is refused to our Basic credential. Raises UpstreamUnavailable."""
        asking = self._pinging.run(
            ("credential", *_key(destination), credential.identity),
            lambda: self._get(destination, Deadline.after(self._transport.timeouts.first_byte), credential),
        )
        response = await deadline.bound(asking, f"GET {destination.url.raw_host}/v2/")
        return response.status in (401, 403)

    async def _ping(self, destination: Destination) -> Demand:
        # Not one of several tries, and not for long: whatever is wrong will show in the real request.
        patience = self._transport.timeouts.try_
        try:
            response = await self._get(destination, Deadline.after(patience), tries=1)
        except UpstreamUnavailable:
            await self._memory.set(_key(destination), UNKNOWN, 2 * patience)
            return UNKNOWN
        demand = demand_of(response)
        await self._memory.set(_key(destination), demand, _TTL)
        return demand

    async def _get(
        self, destination: Destination, deadline: Deadline, credential: Credential | None = None, tries: int = 4
    ) -> Response:
        authorization = credential.header if credential else None
        request = Request(
            destination, destination.at("/v2/"), KIND, authorization=authorization, follow=False, tries=tries
        )
        async with await self._transport.send(request, deadline) as response:
            await response.drain(within=self._transport.timeouts.try_ / 5)
        return response


def demand_of(response: Response) -> Demand:
    """What a 401 asks for. Raises UpstreamUnavailable, reason realm, for a token endpoint that is no URL."""
    challenge = choose(parse_challenges(response.header_values("WWW-Authenticate")))
    if response.status != 401 or challenge is None:
        return NOTHING
    if challenge.scheme == "basic":
        return Demand("basic")
    return Demand("bearer", resolve_realm(challenge.realm, response.url), challenge.service, own_scope(challenge))


def _key(destination: Destination, repository: str = "") -> tuple[str, ...]:
    return ("challenge", host_of(destination.url), destination.url.raw_path, repository)
