"""The fake registry: a real HTTP server on loopback that serves a catalog, honestly until it is told to misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from typing import Literal, Self
from urllib.parse import parse_qsl, unquote, urlencode

from aiohttp import web
from multidict import CIMultiDict

from mirror.oci.digest import Digest
from mirror.oci.errors import DigestInvalid
from mirror.oci.manifest import OCI_INDEX, parse_manifest
from tests.upstream.answers import Answer, Exchange, Pause, content_answer, error_answer, json_answer, text_answer
from tests.upstream.auth import NoAuth
from tests.upstream.catalog import Catalog, Repository
from tests.upstream.cdn import answer_signed, read_target, sign
from tests.upstream.content import Image, Index, Manifest, Stored
from tests.upstream.counters import Kind, Origin, Seen
from tests.upstream.listener import Listener
from tests.upstream.rules import Rule, Switchboard
from tests.upstream.wire import RateLimit, Sent, send

_PATH = re.compile(r"/v2/(.+)/(manifests|blobs|tags|referrers)/([^/]+)")
_KINDS: dict[str, Kind] = {"manifests": "manifest", "blobs": "blob", "tags": "tags", "referrers": "referrers"}


class FakeRegistry(Catalog, Switchboard):
    """An upstream registry, with a CDN as second origin for redirects.

    `auth` says who may pull, `latency` (seconds) and `rate` (bytes per second, all answers together) slow everything
    down, `page_size` caps lists of tags and referrers, `referrers` turns that endpoint on: all are attributes that may
    be changed at any moment. It listens on loopback, or on `address`, and its URLs name that or `name`. With `tls` both
    origins speak TLS. An async context manager; the port stays the same over stop and start.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        address: str = "127.0.0.1",
        name: str | None = None,
        auth: NoAuth | None = None,
        tls: ssl.SSLContext | None = None,
        latency: float = 0.0,
        rate: float | None = None,
        page_size: int | None = None,
        link_style: str = "relative",
        tag_order: Literal["sorted", "pushed"] = "sorted",
        honours_last: bool = True,
        referrers: bool = False,
    ) -> None:
        Catalog.__init__(self)
        Switchboard.__init__(self)
        self.auth = auth or NoAuth()
        self.latency = latency
        self.page_size = page_size
        self.link_style = link_style
        """`relative`, `absolute`, `opaque` (a cursor in place of `last`, no `n`), `elsewhere` (absolute, on the CDN),
        or `misplaced` (absolute, under a wrong path, as Nexus has it)."""
        self.tag_order = tag_order
        self.honours_last = honours_last
        """Whether `last` means anything; Distribution's proxies list from the start again."""
        self.referrers = referrers
        self.errors: list[Exception] = []
        """What went wrong in the fake itself or in a test's `when` or `then`; raised when the context ends."""
        self._limit = RateLimit(rate) if rate else None
        self._name = name or address
        self._scheme = "https" if tls else "http"
        self._refusals: int | None = 0
        self._registry = Listener(lambda request: self._serve("registry", request), self._accept, port, tls, address)
        self._cdn = Listener(lambda request: self._serve("cdn", request), self._accept, 0, tls, address)

    async def start(self) -> Self:
        """Listens, on the same ports as before if it did before."""
        await self._registry.start()
        await self._cdn.start()
        return self

    async def stop(self) -> None:
        """Stops as a dying process does: nobody listens, every connection is gone. Content, faults, counters stay."""
        await self._registry.stop()
        await self._cdn.stop()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self.errors:
            raise ExceptionGroup("the fake registry failed, not the code under test", self.errors)

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, or by its name."""
        return f"{self._name}:{self._registry.port}"

    @property
    def url(self) -> str:
        """Scheme and host, without a slash at the end."""
        return f"{self._scheme}://{self.host}"

    @property
    def cdn_url(self) -> str:
        """The other origin, likewise."""
        return f"{self._scheme}://{self._name}:{self._cdn.port}"

    @property
    def rate(self) -> float | None:
        """Bytes per second that all bodies share; None for no limit."""
        return self._limit.rate if self._limit else None

    @rate.setter
    def rate(self, value: float | None) -> None:
        self._limit = RateLimit(value) if value else None

    def refuse_connections(self, times: int | None = None) -> None:
        """Resets the next `times` connections at accept, before a request can be read (None: all, until 0)."""
        self._refusals = times

    def drop_connections(self) -> None:
        """Closes every open connection; the fake goes on listening."""
        self._registry.drop()
        self._cdn.drop()

    def blob_url(self, repository: str, blob: Stored | Digest) -> str:
        """Where a blob is served."""
        return f"{self.url}/v2/{repository}/blobs/{blob if isinstance(blob, Digest) else blob.digest}"

    def manifest_url(self, repository: str, reference: str | Digest | Stored | Image | Index) -> str:
        """Where a manifest is served, by tag or digest."""
        text = reference.digest if isinstance(reference, Stored | Image | Index) else reference
        return f"{self.url}/v2/{repository}/manifests/{text}"

    def signed_url(self, seen: Seen, *, lifetime: float, method: str | None = None) -> str:
        """A URL of the CDN for what a request asked for."""
        if seen.repository is None or seen.digest is None:
            raise ValueError(f"{seen.path} names nothing that a CDN could serve")
        target = sign(seen.repository, str(seen.digest), method=method or seen.method, lifetime=lifetime)
        return self.cdn_url + target

    def _accept(self) -> bool:
        self.connections += 1
        if self._refusals == 0:
            return True
        if self._refusals is not None:
            self._refusals -= 1
        return False

    async def _serve(self, origin: Origin, request: web.BaseRequest) -> Sent:
        seen = self._read(origin, request)
        self.note(seen)
        seen.body = await request.read() if request.can_read_body else b""
        exchange = Exchange(seen, CIMultiDict(request.headers), self)
        rules: list[Rule] = []
        try:
            answer, rules = self._answer(exchange)
            return await send(request, answer, seen, self)
        except (ConnectionError, asyncio.CancelledError):
            seen.disconnected = True
            raise
        except Exception as error:
            self.errors.append(error)
            raise
        finally:
            seen.finished = True
            for rule in rules:
                rule.fault.after(exchange)
            self.note()

    def _answer(self, exchange: Exchange) -> tuple[Answer, list[Rule]]:
        seen = exchange.seen
        home = self.repositories.get(seen.repository) if seen.repository else None
        exchange.stored = _find(home, seen)
        refusal = None
        if seen.origin == "registry" and seen.kind != "token":
            # A repository that does not exist is asked for like one that does: it is refused or missing afterwards.
            refusal = self.auth.refuse(exchange, home or (Repository(seen.repository) if seen.repository else None))
        if refusal is not None and seen.kind != "ping":
            return self._slowed(refusal), []
        rules = self.matching(exchange)
        for rule in rules:
            rule.fault.believe(exchange)
        answer = refusal or self._honest(exchange, home)
        for rule in rules:
            rule.fault.edit(exchange, answer, rule)
        return self._slowed(answer), rules

    def _slowed(self, answer: Answer) -> Answer:
        if self.latency:
            answer.steps.insert(0, Pause(None, lambda: asyncio.sleep(self.latency)))
        if self._limit is not None:
            answer.limits.append(self._limit)
        return answer

    def _honest(self, exchange: Exchange, home: Repository | None) -> Answer:
        seen = exchange.seen
        if seen.kind == "token":
            return self.auth.token(exchange, self.repositories)
        if seen.origin == "cdn":
            return answer_signed(exchange, exchange.stored)
        if seen.kind == "other":
            return text_answer(404, "404 page not found\n")
        if seen.method not in ("GET", "HEAD"):
            return error_answer(405)
        if seen.kind == "ping":
            answer = json_answer(200, {})
            answer.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
            return answer
        if home is None:
            return error_answer(404, "NAME_UNKNOWN", "repository name not known to registry")
        if seen.kind == "tags":
            return self._tags(exchange, home)
        if seen.kind == "referrers":
            return self._referrers(exchange, home)
        return _content(exchange)

    def _tags(self, exchange: Exchange, home: Repository) -> Answer:
        query = dict(parse_qsl(exchange.seen.target.partition("?")[2]))
        tags = sorted(home.tags) if self.tag_order == "sorted" else list(home.tags)
        if "cursor" in query:
            tags = tags[tags.index(query["cursor"]) + 1 :]
        elif self.honours_last:
            tags = [tag for tag in tags if tag > query.get("last", "")]
        asked = int(query["n"]) if query.get("n", "").isdigit() else len(tags)
        limit = min(asked, self.page_size if self.page_size is not None else asked)
        page = tags[:limit]
        answer = json_answer(200, {"name": home.name, "tags": page})
        if page and len(page) < len(tags):
            more = {"cursor": page[-1]} if self.link_style == "opaque" else {"last": page[-1], "n": str(limit)}
            self._lead_on(answer, f"/v2/{home.name}/tags/list", more)
        return answer

    def _lead_on(self, answer: Answer, path: str, query: dict[str, str]) -> None:
        base = {"absolute": self.url, "elsewhere": self.cdn_url, "misplaced": f"{self.url}/wrong"}
        target = f"{base.get(self.link_style, '')}{path}?{urlencode(query)}"
        answer.headers["Link"] = f'<{target}>; rel="next"'

    def _referrers(self, exchange: Exchange, home: Repository) -> Answer:
        if not self.referrers:
            return text_answer(404, "404 page not found\n")
        subject = exchange.seen.digest
        if subject is None:
            return error_answer(400, "DIGEST_INVALID")
        query = dict(parse_qsl(exchange.seen.target.partition("?")[2]))
        wanted = query.get("artifactType")
        found = [one for one in map(_referrer, home.manifests.values()) if one and one.pop("subject") == str(subject)]
        matching = [one for one in found if wanted is None or one["artifactType"] == wanted]
        start = int(query.get("cursor", "0"))
        listed = matching[start : start + self.page_size if self.page_size is not None else None]
        answer = json_answer(200, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}, OCI_INDEX)
        if wanted is not None:
            answer.headers["OCI-Filters-Applied"] = "artifactType"
        if start + len(listed) < len(matching):
            self._lead_on(answer, exchange.seen.path, {**query, "cursor": str(start + len(listed))})
        return answer

    def _read(self, origin: Origin, request: web.BaseRequest) -> Seen:
        target = request.raw_path
        path = unquote(target.partition("?")[0])
        kind, repository, reference = _parse(path)
        if origin == "cdn" and kind != "token":
            signed = read_target(target)
            kind, repository, reference = "other", None, None
            if signed is not None:
                repository, reference = signed.repository, signed.reference
        seen = Seen(self.next_number(), origin, request.method, target, path, kind, repository, reference, None,
                    request.headers)  # fmt: skip
        seen.digest = self._digest_of(repository, reference)
        if origin == "cdn" and seen.digest is not None and repository in self.repositories:
            is_manifest = seen.digest in self.repositories[repository].manifests
            seen.kind = "manifest" if is_manifest else "blob"
        return seen

    def _digest_of(self, repository: str | None, reference: str | None) -> Digest | None:
        if repository is None or reference is None:
            return None
        if ":" not in reference:
            home = self.repositories.get(repository)
            manifest = home.tags.get(reference) if home else None
            return manifest.digest if manifest else None
        try:
            return Digest.parse(reference)
        except DigestInvalid:
            return None


def _parse(path: str) -> tuple[Kind, str | None, str | None]:
    if path in ("/v2/", "/v2"):
        return "ping", None, None
    if path == "/token":
        return "token", None, None
    match = _PATH.fullmatch(path)
    if match is None or (match[2] == "tags" and match[3] != "list"):
        return "other", None, None
    return _KINDS[match[2]], match[1], None if match[2] == "tags" else match[3]


def _find(home: Repository | None, seen: Seen) -> Stored | None:
    if home is None or seen.digest is None:
        return None
    if seen.kind == "manifest":
        return home.manifests.get(seen.digest)
    return home.blobs.get(seen.digest) if seen.kind == "blob" else None


def _content(exchange: Exchange) -> Answer:
    seen, stored = exchange.seen, exchange.stored
    if stored is None:
        if seen.digest is None and seen.reference is not None and (seen.kind == "blob" or ":" in seen.reference):
            return error_answer(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        return error_answer(404, f"{seen.kind.upper()}_UNKNOWN", f"{seen.kind} unknown to registry")
    is_blob = seen.kind == "blob"
    answer = content_answer(stored, exchange.headers.get("Range") if is_blob else None)
    if answer.status < 400:
        answer.headers["Docker-Content-Digest"] = str(stored.digest)
        answer.headers["ETag"] = f'"{stored.digest}"'
        if is_blob:
            answer.headers["Content-Type"] = "application/octet-stream"
        else:
            answer.headers.pop("Accept-Ranges")
    return answer


def _referrer(manifest: Manifest) -> dict[str, object] | None:
    parsed = parse_manifest(manifest.content)
    if parsed is None or parsed.subject is None:
        return None
    stated = json.loads(manifest.content)
    kind = stated.get("artifactType") or (parsed.config.media_type if parsed.config else "")
    annotations = stated.get("annotations", {})
    return {**manifest.descriptor, "artifactType": kind, "annotations": annotations, "subject": parsed.subject.digest}
