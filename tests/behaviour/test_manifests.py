"""Manifests leave as they came: exact bytes, any media type, verified before they are stored or served."""

from __future__ import annotations

import gzip
import json

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
)
from tests.conftest import StartMirror
from tests.harness import Reply, RunningMirror, short_timeouts
from tests.upstream import (
    FakeRegistry,
    Manifest,
    content_type,
    gzipped,
    header,
    html,
    instead,
    no_digest,
    no_length,
    status,
    strict_accept,
    then,
    truncate,
    wrong_digest,
)
from tests.upstream.content import make_manifest

REPOSITORY = "library/demo"
PATIENT = short_timeouts(first_byte=3, stale_after=1)


@pytest.fixture
async def mirror(start_mirror: StartMirror) -> RunningMirror:
    """A mirror in front of `upstream` as docker.io, that waits a little longer than others."""
    return await start_mirror(timeouts=PATIENT)


def assert_is(reply: Reply, manifest: Manifest) -> None:
    """Checks bytes and headers of a 200 with this manifest."""
    assert (reply.status, reply.body) == (200, manifest.content)
    assert reply.headers["Docker-Content-Digest"] == str(manifest.digest)
    assert reply.headers["Content-Length"] == str(manifest.size)
    assert reply.headers["Content-Type"] == manifest.media_type
    assert reply.headers["ETag"] == f'"{manifest.digest}"'
    assert "Content-Encoding" not in reply.headers


class TestBytes:
    async def test_every_byte_is_kept(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """White space, escapes, repeated keys and what is no JSON: nothing is trimmed, converted or digested anew."""
        contents = [
            b'{"schemaVersion":2}',
            b' \n\t{ "schemaVersion" : 2 ,\r\n "layers":[ ] }\n\n',
            '{"schemaVersion":2,"annotations":{"name":"\\u00e9 é \U0001f433"}}'.encode(),
            b'{"schemaVersion":2,"schemaVersion":2,"x":1e400}',
            b"\xef\xbb\xbfnot JSON at all \x00\xff",
        ]
        for tag, content in enumerate(contents):
            manifest = upstream.put_manifest(REPOSITORY, content, str(tag))
            for reference in (str(tag), manifest.digest):
                assert_is(await mirror.manifest("demo", reference), manifest)
                assert_is(await mirror.manifest("demo", reference), manifest)

    async def test_any_media_type_is_served(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """A manifest whose body names no type has the one that the upstream says, whatever it is."""
        media_types = [
            OCI_MANIFEST,
            OCI_INDEX,
            DOCKER_MANIFEST,
            DOCKER_LIST,
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "application/vnd.acme.rocket.manifest.v3+json",
        ]
        for tag, media_type in enumerate(media_types):
            body = {"schemaVersion": 2, "annotations": {"n": str(tag)}}
            manifest = upstream.put_manifest(REPOSITORY, body, str(tag), media_type=media_type)
            for _ in range(2):
                assert_is(await mirror.manifest("demo", str(tag)), manifest)
                assert_is(await mirror.manifest("demo", manifest.digest), manifest)

    async def test_indexes_and_images_of_docker_and_oci_are_served(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The manifests that real images are made of."""
        for docker in (True, False):
            tag = "docker" if docker else "oci"
            index = upstream.add_index(REPOSITORY, tag, docker=docker)
            assert_is(await mirror.manifest("demo", tag), index.manifest)
            for image in index.images:
                assert_is(await mirror.manifest("demo", image.digest), image.manifest)

    async def test_sha512_is_verified_and_served(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """A manifest known by its sha512 digest is asked for, verified and found again by it, also by tag."""
        manifest = upstream.put_manifest(REPOSITORY, b'{"schemaVersion": 2}', "1", algorithm="sha512")

        assert_is(await mirror.manifest("demo", manifest.digest), manifest)
        assert_is(await mirror.manifest("demo", "1"), manifest)
        assert (await mirror.manifest("demo", manifest.digest)).cache == "hit"

    async def test_four_mebibytes_are_served(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """The largest manifest that the specification asks for."""
        manifest = upstream.put_manifest(REPOSITORY, _padded(MANIFEST_LIMIT), "1")

        assert_is(await mirror.manifest("demo", "1"), manifest)
        assert (await mirror.manifest("demo", "1")).cache == "hit"

    async def test_more_is_refused_without_being_read(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """One byte more is no manifest; with a stated length not even its body is taken."""
        manifest = upstream.put_manifest(REPOSITORY, _padded(MANIFEST_LIMIT + 1), "1")

        assert (await mirror.manifest("demo", "1")).status == 503
        upstream.fault("library/demo:1", no_length())
        assert (await mirror.manifest("demo", "1")).status == 503
        assert (await mirror.manifest("demo", manifest.digest)).status == 503


class TestWrongBytes:
    async def test_wrong_bytes_are_fetched_once_more(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """One bad answer costs one more request; the client gets the right manifest and never hears of it."""
        image, other = upstream.add_image(REPOSITORY, "1"), upstream.add_image(REPOSITORY)
        upstream.fault(image, instead(other.manifest), times=1)

        assert_is(await mirror.manifest("demo", image.digest), image.manifest)
        assert upstream.requests_for(image) == 2
        assert mirror.metric("mirror_digest_mismatches_total", upstream="docker.io") == 1

    @pytest.mark.parametrize("reference", ["digest", "tag"])
    async def test_wrong_bytes_twice_are_a_502(
        self, mirror: RunningMirror, upstream: FakeRegistry, reference: str
    ) -> None:
        """Bytes that the digest denies are neither served nor stored, however often they come."""
        image = upstream.add_image(REPOSITORY, "1")
        first, second = (upstream.add_image(REPOSITORY, labels={"n": n}).manifest for n in "ab")
        upstream.fault(image, instead(first), times=1)
        upstream.fault(image, instead(second), times=1, skip=1)

        reply = await mirror.manifest("demo", image.digest if reference == "digest" else "1")

        assert (reply.status, reply.code) == (502, "UNAVAILABLE")
        assert_is(await mirror.manifest("demo", image.digest), image.manifest)

    async def test_the_same_wrong_bytes_twice_are_a_502_too(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A digest header that lies needs a manifest under it: what is none is wrong bytes, by tag as by digest."""
        upstream.add_image(REPOSITORY, "1")
        broken = upstream.fault("library/demo:1", truncate(100, "chunked-complete"))

        reply = await mirror.manifest("demo", "1")
        broken.remove()

        assert (reply.status, reply.code) == (502, "UNAVAILABLE")
        assert (await mirror.manifest("demo", "1")).status == 200

    async def test_a_short_body_never_passes_for_a_manifest(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A connection that breaks is no answer yet; where no length was promised the digest header tells."""
        cuts = (truncate(100), truncate(100, "chunked"), truncate(100, "close"), truncate(100, "chunked-complete"))
        for tag, cut in enumerate(cuts):
            image = upstream.add_image(REPOSITORY, str(tag))
            upstream.fault(image, cut, times=1)
            assert_is(await mirror.manifest("demo", str(tag)), image.manifest)

    @pytest.mark.parametrize("code", [200, 404, 503])
    async def test_a_web_page_is_never_a_manifest(
        self, mirror: RunningMirror, upstream: FakeRegistry, code: int
    ) -> None:
        """A captive portal's page is neither served nor stored, and with 200 it is no answer at all."""
        image = upstream.add_image(REPOSITORY, "1")
        page = upstream.fault(image, html(code))

        for reference in ("1", image.digest):
            for method in ("GET", "HEAD"):
                reply = await mirror.manifest("demo", reference, method=method)
                assert reply.status == (404 if code == 404 else 503)
                assert b"<html" not in reply.body
        page.remove()
        if code != 404:
            assert_is(await mirror.manifest("demo", "1"), image.manifest)

    async def test_a_web_page_is_never_a_blob(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Nor is its length a blob's: HEAD, GET and ranges have no answer, and none of it is remembered."""
        blob = upstream.put_blob(REPOSITORY, 10_000)
        page = upstream.fault(blob, html())

        for method, headers in (("HEAD", {}), ("GET", {}), ("GET", {"Range": "bytes=0-9"}), ("HEAD", {})):
            reply = await mirror.blob("demo", blob.digest, method=method, **headers)
            assert reply.status == 503
        page.remove()
        assert (await mirror.blob("demo", blob.digest, method="HEAD")).headers["Content-Length"] == "10000"
        assert (await mirror.blob("demo", blob.digest)).body == blob.content

    async def test_a_blob_that_is_a_web_page_is_served(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Somebody's documentation, say, that a registry labels as what it is: it comes with its digest."""
        blob = upstream.put_blob(REPOSITORY, b"<!DOCTYPE html><title>The manual</title>")
        upstream.fault(blob, content_type("text/html"))

        assert (await mirror.blob("demo", blob.digest, method="HEAD")).headers["Content-Length"] == str(blob.size)
        assert (await mirror.blob("demo", blob.digest)).body == blob.content

    async def test_json_that_is_no_manifest_means_no_tag(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """JSON with 200 but without a digest header, of something else, is no answer to a tag."""
        upstream.add_image(REPOSITORY, "1")
        upstream.fault(
            "library/demo:1", status(200, json.dumps({"error": "quota"}), headers={"X-From": "a proxy"}), method="GET"
        )

        assert (await mirror.manifest("demo", "1")).status == 503


class TestLies:
    async def test_a_lying_digest_header_changes_nothing_by_digest(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """By digest the bytes are verified, the header is not even looked at."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault(image, wrong_digest())

        assert_is(await mirror.manifest("demo", image.digest), image.manifest)
        assert upstream.requests_for(image) == 1

    async def test_a_lying_digest_header_by_tag_is_asked_twice(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The same bytes twice under a header that does not fit them: then the bytes are right and the header lies."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault("library/demo:1", wrong_digest(), method="GET")

        assert_is(await mirror.manifest("demo", "1"), image.manifest)
        assert upstream.count("library/demo:1", method="GET") == 2

    async def test_a_lying_head_harms_no_later_get(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """HEAD that names a digest nobody has: the GET after it brings the manifest and puts it right."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault("library/demo:1", wrong_digest(), method="HEAD")

        await mirror.manifest("demo", "1", method="HEAD")

        assert_is(await mirror.manifest("demo", "1"), image.manifest)
        assert (await mirror.manifest("demo", "1", method="HEAD")).headers["Docker-Content-Digest"] == str(image.digest)

    async def test_a_missing_or_odd_digest_header_is_done_without(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The digest is that of the bytes."""
        for tag, value in enumerate((None, "", "sha256:abc", "md5:" + 32 * "0", "no digest")):
            image = upstream.add_image(REPOSITORY, str(tag))
            upstream.fault(image, header("Docker-Content-Digest", value))
            assert_is(await mirror.manifest("demo", str(tag)), image.manifest)
            assert_is(await mirror.manifest("demo", image.digest), image.manifest)

    async def test_an_encoded_manifest_is_decoded_to_the_bytes_that_were_asked_for(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """Compression that nobody asked for is undone: what is served has the digest and no Content-Encoding."""
        for label in ("gzip", "x-gzip", "GZIP"):
            by_tag, by_digest = (upstream.add_image(REPOSITORY, label + end) for end in ("-tag", "-digest"))
            upstream.fault(by_tag, gzipped(label))
            upstream.fault(by_digest, gzipped(label))
            assert_is(await mirror.manifest("demo", f"{label}-tag"), by_tag.manifest)
            assert_is(await mirror.manifest("demo", by_digest.digest), by_digest.manifest)

        assert {seen.headers["Accept-Encoding"] for seen in upstream.content_requests()} == {"identity"}

    async def test_an_encoded_manifest_without_a_digest_header_is_decoded_too(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """By tag and without a digest the decoded bytes are taken."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault(image, gzipped())
        upstream.fault(image, no_digest())

        assert_is(await mirror.manifest("demo", "1"), image.manifest)

    async def test_a_small_body_never_becomes_a_large_one(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Bytes that decode to far more than a manifest may have are no manifest."""
        bomb = gzip.compress(_padded(8 << 20), mtime=0)
        upstream.put_manifest(REPOSITORY, bomb, "1")
        upstream.fault("library/demo:1", no_digest())
        upstream.fault("library/demo:1", header("Content-Encoding", "gzip"))

        assert (await mirror.manifest("demo", "1")).status == 503

    async def test_a_content_type_that_says_nothing_is_found_out(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A body without a type of its own, sent with one that fits everything, has the one that its shape tells."""
        table = {
            "application/json": OCI_MANIFEST,
            "text/plain; charset=utf-8": OCI_MANIFEST,
            "application/octet-stream": OCI_MANIFEST,
            None: OCI_MANIFEST,
            f"{DOCKER_MANIFEST}; charset=utf-8": DOCKER_MANIFEST,
        }
        for tag, (said, served) in enumerate(table.items()):
            body = {"schemaVersion": 2, "layers": [], "annotations": {"n": str(tag)}}
            manifest = upstream.put_manifest(REPOSITORY, body, str(tag))
            upstream.fault(manifest, content_type(said))
            for reference in (str(tag), manifest.digest):
                for method in ("GET", "HEAD"):
                    reply = await mirror.manifest("demo", reference, method=method)
                    assert reply.headers["Content-Type"] == served

    async def test_a_lying_content_type_does_not_outdo_the_body(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The type inside the bytes is signed by their digest, the header is not."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault(image, content_type(DOCKER_LIST))

        assert_is(await mirror.manifest("demo", "1"), image.manifest)
        assert_is(await mirror.manifest("demo", image.digest), image.manifest)

    async def test_a_tag_that_moves_between_head_and_get_is_what_the_bytes_are(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """HEAD names one manifest, GET brings the next: what came is served, under its own digest, and remembered."""
        upstream.add_image(REPOSITORY, "1")
        new = upstream.add_image(REPOSITORY, labels={"v": "2"})
        move = then(lambda: upstream.move_tag(REPOSITORY, "1", new))
        upstream.fault("library/demo:1", move, method="HEAD", times=1)

        await mirror.manifest("demo", "1", method="HEAD")

        assert_is(await mirror.manifest("demo", "1"), new.manifest)
        assert_is(await mirror.manifest("demo", "1"), new.manifest)

    async def test_the_digest_header_of_moved_bytes_is_their_own(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """A registry whose headers and body come from different moments is asked again, not believed."""
        old, new = upstream.add_image(REPOSITORY, "1"), upstream.add_image(REPOSITORY, labels={"v": "2"})
        upstream.fault("library/demo:1", instead(new.manifest), times=1, method="GET")

        reply = await mirror.manifest("demo", "1")

        assert reply.headers["Docker-Content-Digest"] == str(Digest.of(reply.body))
        assert_is(reply, old.manifest)


class TestAccept:
    async def test_a_clients_accept_selects_nothing(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """One digest per tag: whatever the client says it likes, it is given what the tag is."""
        index = upstream.add_index(REPOSITORY, "1")
        upstream.fault(REPOSITORY, strict_accept())

        for accept in (OCI_MANIFEST, DOCKER_MANIFEST, "*/*", "text/html", "application/json;q=0"):
            assert_is(await mirror.manifest("demo", "1", Accept=accept), index.manifest)
            assert_is(await mirror.manifest("demo", index.digest, Accept=accept), index.manifest)
        assert upstream.requests_for(index) == 1

    async def test_the_upstream_is_always_asked_for_everything(
        self, mirror: RunningMirror, upstream: FakeRegistry
    ) -> None:
        """The full list leaves with every question, by tag and digest, by HEAD and GET, whatever the client sent."""
        images = [upstream.add_image(REPOSITORY, f"{number}") for number in range(4)]

        await mirror.manifest("demo", "0", Accept=DOCKER_MANIFEST)
        await mirror.manifest("demo", "1", Accept=DOCKER_MANIFEST, method="HEAD")
        await mirror.manifest("demo", images[2].digest, Accept="*/*")
        await mirror.manifest("demo", images[3].digest, method="HEAD")

        asked = upstream.content_requests()
        assert len(asked) == 4
        assert {seen.headers["Accept"] for seen in asked} == {ACCEPT}


class TestHead:
    async def test_head_equals_get(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """Status and headers are the same, cold and warm, for what is there and what is not; the body is missing."""
        for number, warm in enumerate((False, True)):
            upstream.add_image(REPOSITORY, f"{number}")
            other = upstream.add_image(REPOSITORY, f"{number}-by-digest")
            absent = Digest.of(f"{number}".encode())
            for reference, code in ((f"{number}", 200), (other.digest, 200), (f"{number}-x", 404), (absent, 404)):
                if warm:
                    await mirror.manifest("demo", reference)
                head = await mirror.manifest("demo", reference, method="HEAD")
                get = await mirror.manifest("demo", reference)
                assert head.status == get.status == code
                assert head.body == b""
                assert _comparable(head) == _comparable(get)

    async def test_head_equals_get_when_stale(self, start_mirror: StartMirror, upstream: FakeRegistry) -> None:
        """Also where the answer is a stale copy."""
        mirror = await start_mirror(tag_ttl=0, timeouts=PATIENT)
        upstream.add_image(REPOSITORY, "1")
        await mirror.manifest("demo", "1")
        await upstream.stop()

        head = await mirror.manifest("demo", "1", method="HEAD")
        get = await mirror.manifest("demo", "1")

        assert (head.cache, head.body) == ("stale", b"")
        assert _comparable(head) == _comparable(get)

    async def test_head_follows_what_get_has_found_out(self, mirror: RunningMirror, upstream: FakeRegistry) -> None:
        """A media type that only the body tells is in the answers to HEAD, too, once the body has been here."""
        image = upstream.add_image(REPOSITORY, "1")
        upstream.fault(image, content_type("application/json"))
        await mirror.manifest("demo", "1", method="HEAD")

        get = await mirror.manifest("demo", "1")

        for reference in ("1", image.digest):
            head = await mirror.manifest("demo", reference, method="HEAD")
            assert _comparable(head) == _comparable(get)


def _comparable(reply: Reply) -> dict[str, str]:
    """The headers that must be equal: not the date, the request's id, or where the answer came from."""
    varying = {"date", "x-request-id", "x-cache"}
    return {name.lower(): value for name, value in reply.headers.items() if name.lower() not in varying}


def _padded(size: int) -> bytes:
    head, tail = b'{"schemaVersion": 2, "annotations": {"padding": "', b'"}}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


def test_the_padding_has_the_size_that_was_asked_for() -> None:
    """The helper above."""
    assert make_manifest(_padded(1000), media_type=OCI_MANIFEST).size == 1000
