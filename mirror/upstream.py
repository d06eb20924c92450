"""Whom we ask: the pull API of the distribution specification, seen from its client's side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, NoReturn

from yarl import URL

from mirror.auth import Authenticator
from mirror.memory import Bounded
from mirror.oci.byte_range import ByteRange, parse_content_range
from mirror.oci.digest import Digest
from mirror.oci.envelope import error_codes
from mirror.oci.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestUnknown,
    NameUnknown,
    TagsUnknown,
    Unknown,
    UpstreamUnavailable,
)
from mirror.oci.link_header import next_query
from mirror.oci.manifest import ACCEPT, MANIFEST_LIMIT, OCI_INDEX, media_type_of
from mirror.oci.reference import Reference
from mirror.oci.referrers import parse_index
from mirror.oci.tag_list import parse_tags
from mirror.routing import Router, Target, UpstreamName
from mirror.transport import BlobStream, Deadline, Destination, Request, Response, Transport

_NO_METHOD = (405, 501)
_RANGE_REFUSED = frozenset({400, 416})
_MISSING = frozenset({404})
_FIRST_BYTE = ByteRange(0, 0)
_OFFLINE = "offline"
_MOST_DESTINATIONS = 1024
_LIST_LIMIT = 8 << 20
"""Bytes of one page of a list; some registries send 100,000 tags in one."""
_PAGE_REFUSED = (400, 405)
_NO_REFERRERS = frozenset({400, 404, 405, 406, 410, 501})
_GONE = (404, 410)


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a HEAD told, nothing of it verified. `digest` None: it was of no use (405, 501, no digest, no length, or
    a redirect whose target does not answer HEAD), a GET must tell."""

    digest: Digest | None
    size: int | None
    content_type: str | None


_NO_USE = ManifestHead(None, None, None)


@dataclass(frozen=True, slots=True)
class ManifestBody:
    """A manifest's bytes as they came; `digest` is what the upstream's header says, `content` is not verified.

    `content_encoding` (lower case) is there in spite of our asking for none: if `content` has not the digest that it
    should, it may have it decoded.
    """

    content: bytes
    digest: Digest | None
    content_type: str | None
    content_encoding: str | None = None


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a list: tags, or descriptors as their exact JSON. `following` is the query of the next page."""

    items: Sequence[str]
    following: str | None


class NoReferrers(Enum):
    """What a registry said in place of a list of referrers."""

    OF_PATH = auto()
    """It has no such API."""
    OF_DIGEST = auto()
    """It has nothing for this digest, as far as that API goes."""
    UNCLEAR = auto()
    """Nothing that the specification knows: some without the API talk like that, and some that are in trouble."""


class Upstreams:
    """Asks upstream registries. Every method raises, besides what it says,

    NameUnknown, or ManifestUnknown or BlobUnknown, for a 404 of the registry itself; UpstreamRefused for its refusal of
    what we rightly showed; UpstreamUnavailable and its children where there is no such answer.
    """

    def __init__(self, router: Router, transport: Transport, authenticator: Authenticator) -> None:
        self._router = router
        self._transport = transport
        self._authenticator = authenticator
        self._destinations: Bounded[UpstreamName, Destination] = Bounded(_MOST_DESTINATIONS)

    def silence(self, target: Target) -> str | None:
        """Why nobody who holds a copy should wait for this upstream: breaker or offline; None where it may answer."""
        destination = self._destination(target.upstream)
        if destination.settings.offline:
            return _OFFLINE
        return "breaker" if self._transport.is_silent(destination.url) else None

    async def head_manifest(self, target: Target, reference: Reference, deadline: Deadline) -> ManifestHead:
        """What the upstream says that `reference` is now; at Docker Hub this costs no quota."""
        request = self._request(target, "manifest", f"manifests/{reference}", method="HEAD", headers={"Accept": ACCEPT})
        try:
            response = await self._authenticator.send(request, target.repository, deadline)
        except UpstreamUnavailable as error:
            if error.reason == "redirect":
                return _NO_USE  # signed URLs are bound to their method
            raise
        if response.status in _NO_METHOD:
            return _NO_USE
        if response.status != 200:
            _fail(response, target, ManifestUnknown(f"{target}: the upstream has no manifest {reference}"))
        digest, size = _digest_of(response.headers), response.content_length
        if digest is None or size is None or response.content_encoding is not None:
            return _NO_USE
        return ManifestHead(digest, size, response.headers.get("Content-Type"))

    async def get_manifest(self, target: Target, reference: Reference, deadline: Deadline) -> ManifestBody:
        """The manifest's bytes, at most MANIFEST_LIMIT; reason size for more, content for what cannot be a manifest."""
        request = self._request(
            target,
            "manifest",
            f"manifests/{reference}",
            headers={"Accept": ACCEPT},
            read=MANIFEST_LIMIT,
            heeded=_MISSING,
        )
        response = await self._authenticator.send(request, target.repository, deadline)
        if response.redirected and response.status == 404:
            _check_registry(response)
            raise ManifestUnknown(f"{target}: the upstream has no manifest {reference}")
        if response.status != 200:
            _fail(response, target, ManifestUnknown(f"{target}: the upstream has no manifest {reference}"))
        said = _digest_of(response.headers)
        digest = reference if isinstance(reference, Digest) else said
        page = response.content_encoding is None and response.body.lstrip()[:1] in (b"", b"<")
        if page and (digest is None or not digest.matches(response.body)):
            # Pages for people come with 200, too: logins, limits, maintenance. They do not come with their digest.
            raise UpstreamUnavailable(f"{response.asked}: answered with a page, not a manifest", reason="content")
        return ManifestBody(response.body, said, response.headers.get("Content-Type"), response.content_encoding)

    async def head_blob(self, target: Target, digest: Digest, deadline: Deadline) -> int | None:
        """The blob's size in bytes, from the upstream's mouth: it would give it to us in this repository.

        A HEAD that is redirected or says no length proves nothing: then the first byte is asked for. None: the
        upstream has the blob and tells no size.
        """
        request = self._request(target, "blob", f"blobs/{digest}", method="HEAD", follow=False)
        response = await self._authenticator.send(request, target.repository, deadline)
        if response.status == 200 and _says(response, digest) and not _is_page(response, digest):
            if response.content_length is not None and response.content_encoding is None:
                return response.content_length
        elif response.status not in (200, *_NO_METHOD) and not 300 <= response.status < 400:
            _fail(response, target, BlobUnknown(f"{target}: the upstream has no blob {digest}"))
        return await self._size_by_first_byte(target, digest, deadline)

    async def open_blob(
        self, target: Target, digest: Digest, deadline: Deadline, byte_range: ByteRange | None = None
    ) -> BlobStream:
        """The blob, or the bytes of `byte_range`; tries again until headers are there, not after.

        Raises UpstreamUnavailable with reason range where the upstream does not like the range, or answers with
        another one: ask without. A whole body in answer to a range is no error, see `partial`.
        """
        response = await self._get_blob(target, digest, deadline, byte_range)
        try:
            return _stream(response, target, digest, byte_range)
        except BaseException:
            response.close()
            raise

    async def list_tags(self, target: Target, query: str, deadline: Deadline) -> ListPage:
        """One page of the repository's tags, in the upstream's order; an empty `query` leaves its size to the upstream.

        Raises TagsUnknown for a 404 that does not deny the repository, and UpstreamUnavailable: reason page where the
        query is refused, content for what is no list, size for one of over 8 MiB.
        """
        headers = {"Accept": "application/json"}
        request = self._list_request(target, "tags", "tags/list", query, headers=headers, heeded=_MISSING)
        response = await self._authenticator.send(request, target.repository, deadline)
        if response.redirected and response.status == 404:
            _check_registry(response)
        if response.status in _PAGE_REFUSED and query:
            raise UpstreamUnavailable(f"{response.asked}: refused a page ({response.status})", reason="page")
        if response.status != 200:
            _fail(response, target, TagsUnknown(f"{target}: the upstream lists no tags"))
        return _page(response, parse_tags(response.body))

    async def referrers(self, target: Target, digest: Digest, query: str, deadline: Deadline) -> ListPage | NoReferrers:
        """One page of what is attached to `digest`; NoReferrers where it gives none.

        Raises UpstreamUnavailable, reason content, for what says that it is an index and is none.
        """
        request = self._list_request(
            target,
            "referrers",
            f"referrers/{digest}",
            query,
            headers={"Accept": OCI_INDEX},
            heeded=_NO_REFERRERS,
            check_redirect=_stay_inside,
        )
        try:
            response = await self._authenticator.send(request, target.repository, deadline)
        except _Outside:
            return NoReferrers.UNCLEAR  # GHCR has led to pages for people
        codes = error_codes(response.body) if response.status != 200 else frozenset()
        if response.status == 404 and "NAME_UNKNOWN" in codes:
            raise NameUnknown(f"{target}: the upstream has no such repository")
        if response.status in _NO_REFERRERS:
            # What is said with a code is said of this digest; a page that is not found, of the path.
            if response.status in _NO_METHOD or (response.status != 400 and codes <= {"UNSUPPORTED"}):
                return NoReferrers.OF_PATH
            return NoReferrers.OF_DIGEST if response.status in _GONE else NoReferrers.UNCLEAR
        if response.status != 200:
            raise UpstreamUnavailable(f"{response.asked}: answered {response.status}", reason="status")
        if media_type_of(None, response.headers.get("Content-Type")) != OCI_INDEX:
            return NoReferrers.UNCLEAR
        return _page(response, parse_index(response.body))

    async def close(self) -> None:
        """Ends what runs and closes every connection, those of the authenticator and the transport included."""
        await self._authenticator.close()
        await self._transport.close()

    async def _get_blob(
        self, target: Target, digest: Digest, deadline: Deadline, byte_range: ByteRange | None
    ) -> Response:
        headers = {"Range": byte_range.header} if byte_range is not None else {}
        heeded = _RANGE_REFUSED if byte_range is not None else frozenset()
        request = self._request(target, "blob", f"blobs/{digest}", headers=headers, heeded=heeded)
        return await self._authenticator.send(request, target.repository, deadline)

    async def _size_by_first_byte(self, target: Target, digest: Digest, deadline: Deadline) -> int | None:
        async with await self._get_blob(target, digest, deadline, _FIRST_BYTE) as response:
            if response.status == 416 and _empty(response):
                return 0
            try:
                return _stream(response, target, digest, _FIRST_BYTE).size
            except UpstreamUnavailable as error:
                if error.reason != "range":
                    raise
        # Whoever cannot do ranges may still give the whole: its headers are enough.
        async with await self._get_blob(target, digest, deadline, None) as response:
            return _stream(response, target, digest, None).size

    def _list_request(self, target: Target, kind: str, path: str, query: str, **how: Any) -> Request:
        return self._request(target, kind, f"{path}?{query}" if query else path, read=_LIST_LIMIT, **how)

    def _request(
        self,
        target: Target,
        kind: str,
        path: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        read: int | None = None,
        follow: bool = True,
        heeded: frozenset[int] = frozenset(),
        check_redirect: Callable[[URL], None] | None = None,
    ) -> Request:
        destination = self._destination(target.upstream)
        if destination.settings.offline:
            raise UpstreamUnavailable(
                f"{target.upstream} is configured to be offline: it is not asked", reason=_OFFLINE
            )
        return Request(
            destination,
            destination.at(f"/v2/{target.repository}/{path}"),
            kind,
            method=method,
            headers=headers or {},
            read=read,
            follow=follow,
            heeded=heeded,
            check_redirect=check_redirect,
        )

    def _destination(self, upstream: UpstreamName) -> Destination:
        destination = self._destinations.get(upstream)
        if destination is None:
            destination = Destination.of(upstream, self._router.settings(upstream))
            self._destinations.set(upstream, destination)
        return destination


def _page(response: Response, items: list[str] | None) -> ListPage:
    if items is None:
        raise UpstreamUnavailable(f"{response.asked}: answered with something that is no list", reason="content")
    try:
        return ListPage(items, next_query(response.header_values("Link")))
    except ValueError as error:
        raise UpstreamUnavailable(f"{response.asked}: {error}", reason="content") from None


class _Outside(UpstreamUnavailable):
    """A redirect leads to what is no registry's path."""


def _stay_inside(url: URL) -> None:
    if not url.raw_path.startswith("/v2/"):
        raise _Outside(f"redirected to a page of {url.raw_authority}", reason="redirect")


def _stream(response: Response, target: Target, digest: Digest, byte_range: ByteRange | None) -> BlobStream:
    """The stream that a GET's answer is, or the error that it means."""
    status = response.status
    if byte_range is not None and status in _RANGE_REFUSED:
        raise UpstreamUnavailable(f"{response.asked}: answered {status} to {byte_range.header}", reason="range")
    if status == 206:
        return _partial(response, byte_range)
    if status != 200:
        _fail(response, target, BlobUnknown(f"{target}: the upstream has no blob {digest}"))
    if _is_page(response, digest):
        reason = "redirect" if response.redirected else "content"
        raise UpstreamUnavailable(f"{response.asked}: answered with a page, not a blob", reason=reason)
    length = response.content_length
    size = length if response.content_encoding is None else None
    return BlobStream(response, start=0, size=size, length=length, partial=False)


def _partial(response: Response, byte_range: ByteRange | None) -> BlobStream:
    """A 206 that gives a beginning of what was asked for, and says as much of it as it sends; else reason range."""
    sent = parse_content_range(response.headers.get("Content-Range"))
    if (
        sent is None
        or byte_range is None
        or sent.start != byte_range.start
        or sent.end > byte_range.end
        or response.content_length not in (None, sent.end - sent.start + 1)
    ):
        raise UpstreamUnavailable(f"{response.asked}: answered with another range than was asked for", reason="range")
    length = sent.end - sent.start + 1
    size = sent.size if response.content_encoding is None else None
    return BlobStream(response, start=sent.start, size=size, length=length, partial=True)


def _empty(response: Response) -> bool:
    """Whether a 416 says that there is nothing at all, so that no range could be satisfied (RFC 9110 §14.4)."""
    return response.headers.get("Content-Range", "").replace(" ", "").lower() == "bytes*/0"


def _says(response: Response, digest: Digest) -> bool:
    """Whether Docker-Content-Digest, if there is one, agrees; another algorithm's digest may be of the same bytes."""
    text = response.headers.get("Docker-Content-Digest")
    if text is None:
        return True
    said = _digest_of(response.headers)
    return said is not None and (said == digest or said.algorithm != digest.algorithm)


def _digest_of(headers: Mapping[str, str]) -> Digest | None:
    try:
        return Digest.parse(headers.get("Docker-Content-Digest", "").strip())
    except DigestInvalid:
        return None


def _is_page(response: Response, digest: Digest) -> bool:
    """Whether a 200 is a page for people: a login, a limit, a portal's. A blob that is one comes with its digest."""
    html = response.headers.get("Content-Type", "").lstrip().lower().startswith(("text/html", "application/xhtml"))
    return html and _digest_of(response.headers) != digest


def _check_registry(response: Response) -> None:
    """Some registries are fronts (registry.k8s.io): what a registry behind them says is missing, is missing.

    Raises UpstreamUnavailable for the 404 of anything else that a redirect leads to.
    """
    codes = error_codes(response.body)
    if not response.url.raw_path.startswith("/v2/") or not {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"} & set(codes):
        raise UpstreamUnavailable(f"{response.asked}: answered 404, but not as a registry", reason="redirect")


def _fail(response: Response, target: Target, unknown: Unknown) -> NoReturn:
    """Raises what a status means that is no success."""
    if response.status == 404:
        if "NAME_UNKNOWN" in error_codes(response.body):
            raise NameUnknown(f"{target}: the upstream has no such repository")
        raise unknown
    raise UpstreamUnavailable(f"{response.asked}: answered {response.status}", reason="status")
