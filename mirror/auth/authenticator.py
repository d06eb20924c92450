"""One request with whatever the registry demands; tells a refusal of the request from one of our credential."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from mirror.auth.credentials import Credential, Credentials
from mirror.auth.pings import NOTHING, Demand, Pings, demand_of
from mirror.auth.realm import check_realm, suffixes
from mirror.auth.tokens import EndpointRefused, Grant, Token, Tokens
from mirror.memory import Memory
from mirror.metrics import Metrics
from mirror.oci.envelope import error_codes
from mirror.oci.errors import CredentialRejected, MirrorError, UpstreamRefused, UpstreamUnavailable
from mirror.routing import UpstreamName
from mirror.transport import Deadline, Destination, Request, Response, Transport

_log = structlog.get_logger()

_MOST_SENDS = 4
_MOST_REJECTED = 1024


@dataclass(frozen=True, slots=True)
class _Proof:
    """What a request shows: a token for a grant, our Basic credential, or nothing."""

    demand: Demand = NOTHING
    token: Token | None = None
    grant: Grant | None = None
    credential: Credential | None = None

    @property
    def header(self) -> str | None:
        if self.token is not None:
            return self.token.header
        return self.credential.header if self.credential else None


class Authenticator:
    """Sends requests to registries with the proof that they demand (distribution's token authentication, and Basic)."""

    def __init__(
        self, transport: Transport, memory: Memory, *, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        """`memory` keeps challenges and tokens; `clock` is Unix time."""
        self._transport = transport
        self._metrics = metrics
        self._credentials = Credentials()
        self._pings = Pings(transport, memory)
        self._tokens = Tokens(transport, memory, clock)
        self._rejected: set[UpstreamName] = set()
        suffixes()  # read now, not in the middle of a request

    async def send(self, request: Request, repository: str, deadline: Deadline) -> Response:
        """The answer to a request about `repository`; never a 401 or 403.

        Raises UpstreamRefused for a refusal of a fresh token, of our credential in this repository, or of anonymous
        access; CredentialRejected where our credential is refused altogether; and as Transport.send, and
        reason realm or token where no token can be had.
        """
        destination = request.destination
        demand = await self._pings.demand(destination, repository, deadline)
        proof = await self._prove(destination, demand, repository, deadline)
        for _ in range(_MOST_SENDS):
            response = await self._transport.send(replace(request, authorization=proof.header), deadline)
            if not _refused(response, proof):
                if proof.token is None and proof.credential is not None:
                    self._accepted(destination)
                return response
            again = await self._second_chance(destination, response, proof, repository, deadline)
            if again is None:
                break
            proof = again
        raise await self._refusal(request, response, proof, deadline)

    async def close(self) -> None:
        """Ends what runs on behalf of several requests."""
        await self._pings.close()
        await self._tokens.close()
        await self._credentials.close()

    async def _prove(self, destination: Destination, demand: Demand, repository: str, deadline: Deadline) -> _Proof:
        """The proof that answers a demand. Raises as `send` where the token endpoint refuses."""
        if demand.scheme is None:
            return _Proof(demand)
        credential = await self._credential(destination)
        if demand.realm is None:
            if credential is not None and credential.header is None:
                what = "an identity token, which only a token endpoint takes; the registry demands a password"
                raise self._reject(destination, f"docker_config {destination.settings.docker_config} has {what}")
            return _Proof(demand, credential=credential)
        check_realm(demand.realm, destination.url, destination.settings.token_hosts)
        scope = demand.scope or f"repository:{repository}:pull"
        grant = Grant(demand.realm, demand.service, scope, credential)
        try:
            token = await self._tokens.get(destination, grant, deadline)
        except EndpointRefused as refused:
            raise await self._endpoint_refusal(destination, grant, refused, deadline) from None
        except UpstreamUnavailable:
            await self._pings.doubt(destination, repository)
            raise
        if token.fresh and credential is not None:
            self._accepted(destination)
        return _Proof(demand, token, grant, credential)

    async def _second_chance(
        self, destination: Destination, response: Response, proof: _Proof, repository: str, deadline: Deadline
    ) -> _Proof | None:
        """Another proof worth sending after a refusal of `proof`; None where there is none."""
        demand = await self._pings.learn(destination, repository, response, proof.demand)
        stale = proof.token is not None and not proof.token.fresh
        if demand == proof.demand and not stale:
            return None
        if proof.grant is not None and proof.token is not None and stale:
            await self._tokens.discard(proof.grant, proof.token)
        again = await self._prove(destination, demand, repository, deadline)
        return None if again.header in (None, proof.header) else again

    async def _refusal(self, request: Request, response: Response, proof: _Proof, deadline: Deadline) -> MirrorError:
        """What a registry's final refusal means."""
        said = f"{request.asked}: refused ({response.status})"
        if not proof.demand.known and demand_of(response).scheme is None:
            # Nothing was shown, and nobody could tell us what to show: that is no answer yet.
            return UpstreamUnavailable(f"{said} without a challenge, and /v2/ did not answer", reason="status")
        if proof.token is None and proof.credential is not None:
            if await self._pings.refuses(request.destination, proof.credential, deadline):
                return self._reject(request.destination, f"{said}, as is /v2/, with the credential that is configured")
            self._accepted(request.destination)
        shown = "the configured credential" if proof.credential else "anonymous access"
        return UpstreamRefused(f"{said} to {shown}")

    async def _endpoint_refusal(
        self, destination: Destination, grant: Grant, refused: EndpointRefused, deadline: Deadline
    ) -> MirrorError:
        """What a token endpoint's refusal means: registries that hide what is private refuse already there."""
        endpoint = f"token endpoint {grant.realm.raw_host}"
        said = f"{destination.name}: {endpoint} refused ({refused.status}) scope {grant.scope!r}"
        if grant.credential is None:
            return UpstreamRefused(f"{said} to anonymous access")
        if await self._tokens.refuses(destination, grant, deadline):
            return self._reject(destination, f"{said}, and the credential that is configured altogether")
        self._accepted(destination)
        return UpstreamRefused(f"{said} to the configured credential")

    async def _credential(self, destination: Destination) -> Credential | None:
        try:
            return await self._credentials.get(destination.settings, destination.name)
        except CredentialRejected as error:
            self._reject(destination, error.message)
            raise

    def _reject(self, destination: Destination, message: str) -> CredentialRejected:
        """Tells the operator, once until it works again; returns the error to raise."""
        name = destination.name
        self._metrics.credentials_rejected.labels(name.entry).set(1)
        if name not in self._rejected:
            if len(self._rejected) >= _MOST_REJECTED:
                self._rejected.clear()
            self._rejected.add(name)
            _log.error("credential rejected", upstream=name.host, entry=name.entry, problem=message)
        return CredentialRejected(message)

    def _accepted(self, destination: Destination) -> None:
        """A pattern is one entry for many hosts: it is well when none of them rejects us."""
        entry = destination.name.entry
        self._rejected.discard(destination.name)
        self._metrics.credentials_rejected.labels(entry).set(any(name.entry == entry for name in self._rejected))


def _refused(response: Response, proof: _Proof) -> bool:
    """Whether the registry itself refused what was shown."""
    if response.redirected:
        return False
    if response.status == 400 and proof.token is not None:  # ECR Public's answer to an expired token
        return not proof.token.fresh or "DENIED" in error_codes(response.body)
    return response.status in (401, 403)
