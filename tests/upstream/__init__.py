"""The fake upstream: a real registry on loopback that counts every request and byte, and misbehaves on demand.

    async def test_resume(upstream: FakeRegistry, ...):             # fixtures: `upstream`, `start_upstream(**options)`
        image = upstream.add_image("library/demo", "1", layers=[8 << 20, 1000])
        blob = image.layers[0]
        upstream.fault(blob, truncate(at=1000), times=1)
        ...                                                         # pull through the mirror from `upstream.url`
        assert upstream.requests_for(blob) == 2

Content (`catalog`, `content`): `add_image(repository, tag, layers=[size | bytes | Blob], docker=, subject=, platform=)`
gives an Image (`.manifest`, `.config`, `.layers`, `.blobs`, `.digest`); `add_index` an Index (`.manifest`, `.images`);
`put_blob`, `put_manifest` (any bytes: forged, sha512, odd media types), `tag`, `move_tag`, `remove`, `make_private`,
`make_public`; `tar_layer({path: bytes})` makes a layer that real clients unpack. Blobs and manifests have `.digest`,
`.size`, `.media_type`, `.content`, `.read(start, length)`. Content is equal in every run and costs no memory.

Server (`registry`): `FakeRegistry(port=, address=, name=, auth=, tls=, latency=, rate=, page_size=, link_style=,
tag_order=, honours_last=, referrers=)`; `url`, `host`, `cdn_url`, `blob_url`, `manifest_url`; `await stop()` and
`await start()` are an outage on the same port; `refuse_connections(times)` resets at accept; `drop_connections()`.
`tls=server_tls()`, clients trust `CA_FILE`.

Authentication (`auth`): `NoAuth()`, `Basic(users, anonymous=)`, `Bearer(users, lifetime=, realm=, refusal=, hidden=…)`;
`upstream.auth` and its attributes may change at any moment; `Bearer.expire_tokens()`; `/token` is on both origins.

Faults: `rule = upstream.fault(target, fault, times=None, skip=0, method=, kind=, origin="registry"|"cdn", when=)`.
Target: a blob, manifest, image, index, digest, "repository:tag" (that tag only), "repository", "/path/pattern*", ANY.
`when=ranged` means requests with Range. All matching rules are combined in the order they were set (stall + redirect +
header …). `rule.reached` (an event), `rule.release()`, `rule.hits`, `rule.remove()`; `upstream.clear_faults()`.
  Travel (`faults`; body faults mean GET only): refuse, reset(at), truncate(at, framing), stall, stall_at(at), delay(s),
  trickle(rate), flip(at), too_much(extra, framing), no_length, wrong_length, gzipped, ignore_range, wrong_206(how),
  unasked_206, garbage.
  Words (`lies`): status(code, body, retry_after=, headers=), html, header(name, value), content_type, wrong_digest,
  no_digest, instead(blob), redirect(code, lifetime=, method=, downgrade=), redirect_to(url), redirect_loop, quota,
  strict_accept, then(action): `fault("x:1", then(lambda: upstream.move_tag("x", "1", new)), method="HEAD", times=1)`.
  `retry_after_forms(seconds)` has every form of Retry-After by name. A redirect goes to a signed URL of the CDN, which
  refuses rewritten bytes, another method, expiry (403) and Authorization (400); its own faults take origin="cdn".
  A request that authentication refuses (but not `/v2/` and `/token`) meets no fault and uses none up.

Counters (`counters`): `requests_for(thing)` (registry only), `bytes_for(thing)` (content bytes, both origins),
`count(thing=None, kind=, method=, status=, origin=, repository=, reference=)`, `select(...)` (the same as a list of
Seen: target, headers, status, bytes_sent, faults, disconnected …), `content_requests()` (empty: the upstream was not
needed), `connections`, `in_flight`, `await until(condition)`, `reset()`.

By hand: `python -m tests.upstream --port 5555 --layer-size 64MiB --rate 10MiB --auth bearer --redirect`.
"""

from tests.upstream.auth import Basic, Bearer, NoAuth
from tests.upstream.catalog import Catalog, Repository
from tests.upstream.certificates import CA_FILE, client_tls, server_tls
from tests.upstream.content import Blob, Image, Index, Manifest, Pattern, Stored, tar_layer
from tests.upstream.counters import Kind, Origin, Seen, Thing
from tests.upstream.faults import (
    delay,
    flip,
    garbage,
    gzipped,
    ignore_range,
    no_length,
    refuse,
    reset,
    stall,
    stall_at,
    too_much,
    trickle,
    truncate,
    unasked_206,
    wrong_206,
    wrong_length,
)
from tests.upstream.lies import (
    content_type,
    header,
    html,
    instead,
    no_digest,
    quota,
    redirect,
    redirect_loop,
    redirect_to,
    retry_after_forms,
    status,
    strict_accept,
    then,
    wrong_digest,
)
from tests.upstream.registry import FakeRegistry
from tests.upstream.rules import ANY, Fault, Rule, ranged

__all__ = [
    "ANY",
    "CA_FILE",
    "Basic",
    "Bearer",
    "Blob",
    "Catalog",
    "FakeRegistry",
    "Fault",
    "Image",
    "Index",
    "Kind",
    "Manifest",
    "NoAuth",
    "Origin",
    "Pattern",
    "Repository",
    "Rule",
    "Seen",
    "Stored",
    "Thing",
    "client_tls",
    "content_type",
    "delay",
    "flip",
    "garbage",
    "gzipped",
    "header",
    "html",
    "ignore_range",
    "instead",
    "no_digest",
    "no_length",
    "quota",
    "ranged",
    "redirect",
    "redirect_loop",
    "redirect_to",
    "refuse",
    "reset",
    "retry_after_forms",
    "server_tls",
    "stall",
    "stall_at",
    "status",
    "strict_accept",
    "tar_layer",
    "then",
    "too_much",
    "trickle",
    "truncate",
    "unasked_206",
    "wrong_206",
    "wrong_digest",
    "wrong_length",
]
