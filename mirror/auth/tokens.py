"""Bearer tokens: minted once for any number of requests, kept until shortly before they expire."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
from yarl import URL

from mirror.auth.credentials import Credential
from mirror.auth.realm import check_realm
from mirror.memory import Key, Memory
from mirror.oci.errors import UpstreamTimeout, UpstreamUnavailable
from mirror.singleflight import SingleFlight
from mirror.transport import Deadline, Destination, Request, Response, Transport

KIND = "auth"
"""The `kind` of our own errands in metrics: pings and tokens."""

_RESPONSE_LIMIT = 64 << 10
_SHORTEST = 60.0
_LONGEST = 86400.0
_EARLY = 10.0
_NO_POST = frozenset({400, 401, 404, 405})
"""How token endpoints answer that know no OAuth2 form: old GCR, JFrog and others."""
_SENDABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token is for: one endpoint, one credential (None: anonymous), one scope (empty: none)."""

    realm: URL
    service: str | None
    scope: str
    credential: Credential | None

    @property
    def key(self) -> Key:
        """The key of its token; holds no secret."""
        identity = self.credential.identity if self.credential else ""
        service = "" if self.service is None else f"={self.service}"
        return ("token", str(self.realm), service, identity, self.scope)


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; `fresh` if it was minted for the request that asked for it."""

    value: str = field(repr=False)
    fresh: bool = True

    @property
    def header(self) -> str:
        """The Authorization header."""
        return f"Bearer {self.value}"


class EndpointRefused(Exception):
    """The token endpoint answered 401 or 403; what that means depends on what was sent."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the token endpoint answered {status}")
        self.status = status


class _Answer(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: Any = None  # some write it as text, and a bad lifetime does not make a bad token
    issued_at: Any = None


decode_token = msgspec.json.Decoder(_Answer).decode


class Tokens:
    """Gives tokens from memory or from the endpoint; failures are never remembered."""

    def __init__(self, transport: Transport, memory: Memory, clock: Callable[[], float]) -> None:
        """`clock` is Unix time, against which `issued_at` is read."""
        self._transport = transport
        self._memory = memory
        self._clock = clock
        self._minting = SingleFlight()

    async def get(self, destination: Destination, grant: Grant, deadline: Deadline) -> Token:
        """A token from memory, or a fresh one.

        Raises EndpointRefused, and UpstreamUnavailable where the endpoint gives no usable answer.
        """
        known = await self._memory.get(grant.key)
        if known is not None:
            return Token(known, fresh=False)
        started_here = False

        async def mint() -> Token:
            # The mint is everyone's, so its deadline is its own: the caller that starts it may be impatient.
            nonlocal started_here
            started_here = True
            return await self._mint(destination, grant, Deadline.after(self._transport.timeouts.first_byte))

        while True:
            self._transport.check_pause(grant.realm, deadline)
            try:
                return await deadline.bound(self._minting.run(grant.key, mint), f"token from {grant.realm.raw_host}")
            except UpstreamTimeout:
                self._transport.check_pause(grant.realm, deadline)  # what the mint waits for, if so
                if started_here or deadline.expired:
                    raise
                # Somebody else's mint ran out of its time, not of ours.

    async def discard(self, grant: Grant, token: Token) -> None:
        """Forgets a token that the registry refused, unless another has taken its place."""
        if await self._memory.get(grant.key) == token.value:
            await self._memory.delete(grant.key)

    async def close(self) -> None:
        """Ends what is being minted."""
        await self._minting.close()

    async def refuses(self, destination: Destination, grant: Grant, deadline: Deadline) -> bool:
        """Whether the endpoint refuses the grant's credential even where nothing is asked for.

        Asked anew each time: the answer decides between "not allowed" and "our password is no longer good".
        """
        bare = replace(grant, scope="")
        patience = Deadline.after(self._transport.timeouts.first_byte)
        asking = self._minting.run(("bare", *bare.key), lambda: self._ask(destination, bare, patience))
        response = await deadline.bound(asking, f"token from {grant.realm.raw_host}")
        return response.status in (401, 403)

    async def _mint(self, destination: Destination, grant: Grant, deadline: Deadline) -> Token:
        response = await self._ask(destination, grant, deadline)
        if response.status in (401, 403):
            raise EndpointRefused(response.status)
        if response.status != 200:
            raise UpstreamUnavailable(f"{response.asked}: answered {response.status}, not with a token", reason="token")
        value, seconds = self._read(response.body, response.asked)
        await self._memory.set(grant.key, value, seconds - _EARLY)
        return Token(value)

    async def _ask(self, destination: Destination, grant: Grant, deadline: Deadline) -> Response:
        credential = grant.credential
        if credential is None or not credential.identity_token:
            return await self._get(destination, grant, deadline)
        response = await self._post(destination, grant, credential.identity_token, deadline)
        if response.status in _NO_POST and credential.header is not None:
            return await self._get(destination, grant, deadline)
        return response

    async def _get(self, destination: Destination, grant: Grant, deadline: Deadline) -> Response:
        """Distribution's token authentication, with HTTP Basic where there is a credential."""
        query = [("service", grant.service)] if grant.service is not None else []
        query += [("scope", scope) for scope in grant.scope.split()]
        request = Request(
            destination,
            grant.realm.extend_query(query),
            KIND,
            authorization=grant.credential.header if grant.credential else None,
            read=_RESPONSE_LIMIT,
            led_by="realm",
            check_redirect=lambda target: check_realm(target, destination.url, destination.settings.token_hosts),
        )
        return await self._transport.send(request, deadline)

    async def _post(self, destination: Destination, grant: Grant, token: str, deadline: Deadline) -> Response:
        """Its OAuth2 form, which takes an identity token. No redirect is followed: it could take the token along."""
        form = {"grant_type": "refresh_token", "client_id": "mirror", "refresh_token": token}
        form |= {"service": grant.service} if grant.service is not None else {}
        form |= {"scope": grant.scope} if grant.scope else {}
        request = Request(
            destination, grant.realm, KIND, method="POST", form=form, read=_RESPONSE_LIMIT, follow=False, led_by="realm"
        )
        return await self._transport.send(request, deadline)

    def _read(self, body: bytes, asked: str) -> tuple[str, float]:
        """The token and the seconds that it lives from now."""
        try:
            answer = decode_token(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamUnavailable(f"{asked}: answered with something that is no token", reason="token") from None
        value = answer.token or answer.access_token or ""
        if _SENDABLE.fullmatch(value) is None:
            raise UpstreamUnavailable(f"{asked}: answered without a usable token", reason="token")
        return value, _lifetime(answer, self._clock())


def _lifetime(answer: _Answer, now: float) -> float:
    """Seconds of life left: `expires_in`, at least a minute, from `issued_at`, or from now where that is nonsense."""
    try:
        said = float(answer.expires_in or 0)
    except (ValueError, TypeError, OverflowError):
        said = 0.0
    seconds = _SHORTEST if math.isnan(said) else min(max(said, _SHORTEST), _LONGEST)
    try:
        issued = datetime.fromisoformat(answer.issued_at)
        age = now - (issued if issued.tzinfo else issued.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        age = 0.0
    return seconds - age if 0 <= age < seconds else seconds
