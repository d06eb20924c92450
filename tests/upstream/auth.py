"""Who may pull: nobody asked, Basic, or bearer tokens from a token endpoint. Attributes may change at any moment."""

from __future__ import annotations

import base64
import binascii
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import parse_qs

from tests.upstream.answers import Answer, Exchange, error_answer, json_answer, text_answer
from tests.upstream.catalog import Repository


class NoAuth:
    """Public repositories are open to all, private ones to nobody (403)."""

    def refuse(self, exchange: Exchange, repository: Repository | None) -> Answer | None:
        """The answer to a request that may not pass, or None. `repository` is None for what belongs to none."""
        if repository is None or repository.readers is None:
            return None
        return error_answer(403)

    def token(self, exchange: Exchange, repositories: Mapping[str, Repository]) -> Answer:
        """Answers the token endpoint."""
        return error_answer(404)


class Basic(NoAuth):
    """Basic credentials for everything, or with `anonymous` for private repositories only."""

    def __init__(
        self, users: Mapping[str, str], *, anonymous: bool = False, challenge: str = 'Basic realm="fake"'
    ) -> None:
        self.users = dict(users)
        self.anonymous = anonymous
        self.challenge = challenge

    def refuse(self, exchange: Exchange, repository: Repository | None) -> Answer | None:
        """401 with the challenge for absent or wrong credentials, 403 for a user who may not read the repository."""
        given = basic_credentials(exchange.headers.get("Authorization"))
        if given is None and self.anonymous and (repository is None or repository.may_read(None)):
            return None
        if given is None or self.users.get(given[0]) != given[1]:
            answer = error_answer(401)
            answer.headers["WWW-Authenticate"] = self.challenge
            return answer
        return None if repository is None or repository.may_read(given[0]) else error_answer(403)


@dataclass
class _Grant:
    scopes: frozenset[str]
    user: str | None
    expires: float


class Bearer(NoAuth):
    """Bearer tokens, minted at `/token` of the registry's (and the CDN's) origin, by GET and by OAuth2's POST.

    `users`: name → password. `anonymous`: whether the endpoint gives tokens without credentials.
    `lifetime`: seconds that a token lives; `says` what `expires_in` claims (None: left out; by default the lifetime).
    `realm`: another token endpoint than our own (a lie, or the CDN's). `service` None: the challenge names none.
    `scope`: a fixed scope for everything (ECR Public's `aws`). `challenges`: whole WWW-Authenticate values in place of
    ours (empty: none). `ping_open`: `/v2/` is 200 without a token.
    `refusal`: how an expired or unknown token is refused: `401` invalid_token, `403` in plain text without a challenge
    (ECR), or `400` DENIED (ECR Public).
    `hidden`: the endpoint's status for a scope it will not grant (GHCR, Google: 403); None: a token without that scope.
    `fields`: which of `token` and `access_token` the answer has. `post`: whether
    POST is served (else 405). `identities`: identity token → name, for POST's grant of a refresh_token.
    """

    def __init__(
        self,
        users: Mapping[str, str] | None = None,
        *,
        anonymous: bool = True,
        lifetime: float = 300.0,
        says: float | str | None = "lifetime",
        issued_at: str | None = "now",
        realm: str | None = None,
        service: str | None = "fake-registry",
        scope: str | None = None,
        challenges: Sequence[str] | None = None,
        ping_open: bool = False,
        refusal: Literal["401", "403", "400"] = "401",
        hidden: int | None = None,
        fields: Sequence[str] = ("token", "access_token"),
        post: bool = True,
        identities: Mapping[str, str] | None = None,
    ) -> None:
        self.identities = dict(identities or {})
        self.users = dict(users or {})
        self.anonymous = anonymous
        self.lifetime = lifetime
        self.says = says
        self.issued_at = issued_at
        self.realm = realm
        self.service = service
        self.scope = scope
        self.challenges = challenges
        self.ping_open = ping_open
        self.refusal = refusal
        self.hidden = hidden
        self.fields = fields
        self.post = post
        self._grants: dict[str, _Grant] = {}
        self._serial = itertools.count(1)

    def expire_tokens(self) -> None:
        """Makes every token given so far expired, at once."""
        for grant in self._grants.values():
            grant.expires = 0.0

    def refuse(self, exchange: Exchange, repository: Repository | None) -> Answer | None:
        """None for a live token that reaches the repository, if its user still may read it; else the refusal."""
        scheme, _, token = exchange.headers.get("Authorization", "").partition(" ")
        if not token:
            if repository is None and self.ping_open:
                return None
            return self._challenge(exchange, repository)
        grant = self._grants.get(token) if scheme.lower() == "bearer" else None
        if grant is None or grant.expires <= time.time():
            return self._refuse_token(exchange, repository)
        if repository is None:
            return None
        wanted = self._scope_of(repository)
        if wanted in grant.scopes and repository.may_read(grant.user):
            return None
        return self._challenge(exchange, repository, error="insufficient_scope")

    def token(self, exchange: Exchange, repositories: Mapping[str, Repository]) -> Answer:
        """Mints a token for the scopes that the caller may have; 401 for wrong credentials, even for public ones."""
        if exchange.seen.method == "POST" and not self.post:
            return error_answer(405)
        query = (
            exchange.seen.body.decode(errors="replace")
            if exchange.seen.method == "POST"
            else exchange.seen.target.partition("?")[2]
        )
        fields = parse_qs(query, keep_blank_values=True)
        given = basic_credentials(exchange.headers.get("Authorization"))
        if exchange.seen.method == "POST":
            given = (fields.get("username", [""])[0], fields.get("password", [""])[0])
        if exchange.seen.method == "POST" and fields.get("grant_type") == ["refresh_token"]:
            user = self.identities.get(fields.get("refresh_token", [""])[0])
            given = (user, self.users.get(user, "")) if user is not None else ("", "")
        user = given[0] if given else None
        if (given and self.users.get(given[0]) != given[1]) or (given is None and not self.anonymous):
            return error_answer(401, message="incorrect username or password")
        asked = {scope for value in fields.get("scope", []) for scope in value.split()}
        granted = frozenset(scope for scope in asked if self._grants_scope(scope, user, repositories))
        if self.hidden is not None and granted != asked:
            return error_answer(self.hidden)
        return self._mint(granted, user)

    def _mint(self, scopes: frozenset[str], user: str | None) -> Answer:
        token = f"fake-token-{next(self._serial)}"
        self._grants[token] = _Grant(scopes, user, time.time() + self.lifetime)
        body: dict[str, object] = dict.fromkeys(self.fields, token)
        if self.says is not None:
            body["expires_in"] = self.lifetime if self.says == "lifetime" else self.says
        if self.issued_at is not None:
            body["issued_at"] = datetime.now(UTC).isoformat() if self.issued_at == "now" else self.issued_at
        return json_answer(200, body)

    def _grants_scope(self, scope: str, user: str | None, repositories: Mapping[str, Repository]) -> bool:
        if self.scope is not None:
            return scope == self.scope
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        repository = repositories.get(name, Repository(name))
        return kind == "repository" and "pull" in actions.split(",") and repository.may_read(user)

    def _scope_of(self, repository: Repository) -> str:
        return self.scope or f"repository:{repository.name}:pull"

    def _refuse_token(self, exchange: Exchange, repository: Repository | None) -> Answer:
        if self.refusal == "403":
            return text_answer(403, "Your authorization token has expired. Reauthenticate and try again.")
        if self.refusal == "400":
            return error_answer(400, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")
        return self._challenge(exchange, repository, error="invalid_token")

    def _challenge(self, exchange: Exchange, repository: Repository | None, error: str | None = None) -> Answer:
        answer = error_answer(401)
        fields = {"realm": self.realm or f"{exchange.registry.url}/token"}
        if self.service is not None:
            fields["service"] = self.service
        if repository is not None:
            fields["scope"] = self._scope_of(repository)
        if error:
            fields["error"] = error
        ours = "Bearer " + ",".join(f'{name}="{value}"' for name, value in fields.items())
        for value in [ours] if self.challenges is None else self.challenges:
            answer.headers.add("WWW-Authenticate", value)
        return answer


def basic_credentials(header: str | None) -> tuple[str, str] | None:
    """User and password of a Basic Authorization header; ("", "") where it is garbled, None where it is no Basic."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ("", "")
    return user, password
