"""Which upstream and repository a request means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from mirror.config import Settings, UpstreamSettings
from mirror.oci.errors import MirrorError, NameInvalid, Unsupported, UpstreamRefused
from mirror.routing import Router, Target, UpstreamName, Wanted, read_reference

CORP = "registry.corp:5000"
ECR = "*.dkr.ecr.*.amazonaws.com"


@pytest.fixture(name="router")
def make_router() -> Router:
    """Docker Hub by default, one private registry and one pattern configured."""
    return Router(SETTINGS)


SETTINGS = Settings(
    upstreams={
        CORP: UpstreamSettings(url="http://127.0.0.1:15001", tag_ttl=30),
        ECR: UpstreamSettings(username="AWS", password=SecretStr("planted")),
        "quay.io": UpstreamSettings(tag_ttl=60),
    }
)


@pytest.mark.parametrize(
    ("name", "ns", "host", "repository"),
    [
        ("nginx", None, "docker.io", "library/nginx"),
        ("library/nginx", None, "docker.io", "library/nginx"),
        ("grafana/grafana", None, "docker.io", "grafana/grafana"),
        ("docker.io/nginx", None, "docker.io", "library/nginx"),
        ("index.docker.io/library/nginx", None, "docker.io", "library/nginx"),
        ("registry-1.docker.io/a/b", None, "docker.io", "a/b"),
        ("nginx", "docker.io", "docker.io", "library/nginx"),
        ("nginx", "index.docker.io", "docker.io", "library/nginx"),
        ("docker.io/nginx", "registry-1.docker.io", "docker.io", "library/nginx"),
        ("ghcr.io/org/app", None, "ghcr.io", "org/app"),
        ("org/app", "ghcr.io", "ghcr.io", "org/app"),
        ("org/app", "GHCR.io", "ghcr.io", "org/app"),
        ("ghcr.io/org/app", "ghcr.io", "ghcr.io", "org/app"),
        ("ghcr.io/org/app", "quay.io", "quay.io", "ghcr.io/org/app"),
        ("ghcr.io", "ghcr.io", "ghcr.io", "ghcr.io"),
        (f"{CORP}/app", None, CORP, "app"),
        ("app", CORP, CORP, "app"),
        ("pause", "registry.k8s.io", "registry.k8s.io", "pause"),
        ("my.image", None, "docker.io", "library/my.image"),
    ],
)  # fmt: skip
def test_ns_then_prefix_then_the_default(router: Router, name: str, ns: str | None, host: str, repository: str) -> None:
    """ns= decides; else a first component that names a known registry; else the default. Hub's names are one."""
    assert router.resolve(name, ns) == Target(UpstreamName(host, host), repository)


def test_a_pattern_is_one_entry_for_many_hosts(router: Router) -> None:
    """Keys use the host that was asked for; settings and labels the pattern that it falls under."""
    pkg = router.resolve("us-docker.pkg.dev/project/repo/app", None)
    ecr = router.resolve("app", "123456789012.dkr.ecr.eu-west-1.amazonaws.com")

    assert pkg == Target(UpstreamName("us-docker.pkg.dev", "*.pkg.dev"), "project/repo/app")
    assert ecr.upstream == UpstreamName("123456789012.dkr.ecr.eu-west-1.amazonaws.com", ECR)
    assert router.settings(ecr.upstream).url == "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    assert router.settings(ecr.upstream).username == "AWS"


@pytest.mark.parametrize(
    ("name", "ns"),
    [
        ("app", "evil.corp"),
        ("app", "registry.corp"),
        ("app", "ghcr.io:443"),
        ("app", "169.254.169.254"),
        ("app", "[::1]:5000"),
        ("evil.corp/app", None),
        ("evil:5000/app", None),
        ("localhost/app", None),
        ("127.0.0.1:5000/app", None),
        ("evil.corp/app", "other.corp"),
    ],
)
def test_a_registry_that_nobody_vouched_for_is_refused(router: Router, name: str, ns: str | None) -> None:
    """Nobody can aim us at a host that is neither configured nor well known; the answer says why."""
    with pytest.raises(UpstreamRefused, match="neither configured here nor a well-known"):
        router.resolve(name, ns)


@pytest.mark.parametrize(
    "ns", ["", " ", "a b", "ghcr.io/org", "u:p@ghcr.io", "https://ghcr.io", "x" * 256, "ghcr.io\n", "*.io"]
)
def test_an_ns_that_is_no_host_is_invalid(router: Router, ns: str | None) -> None:
    """Spaces, paths, credentials and endless names in ns= are the client's mistake."""
    with pytest.raises(NameInvalid):
        router.resolve("app", ns)


@pytest.mark.parametrize("name", ["", "UPPER", "a//b", "/a", "a/", "docker.io/", "a" * 300, "a/../b", "ghcr.io/UPPER"])
def test_a_bad_repository_name_is_invalid(router: Router, name: str) -> None:
    """What is outside the specification's grammar never reaches an upstream."""
    with pytest.raises(NameInvalid):
        router.resolve(name, None)


def test_another_default_upstream_takes_names_as_they_are() -> None:
    """Docker Hub's rules (library/, no dots in namespaces) do not apply to other registries."""
    router = Router(Settings(default_upstream=CORP, upstreams=SETTINGS.upstreams))

    assert router.resolve("app", None) == Target(UpstreamName(CORP, CORP), "app")
    assert router.resolve("team.a/app", None) == Target(UpstreamName(CORP, CORP), "team.a/app")
    assert router.resolve("docker.io/nginx", None).repository == "library/nginx"
    with pytest.raises(UpstreamRefused):
        router.resolve("evil:5000/app", None)


def test_settings_are_what_is_configured_over_what_is_built_in(router: Router) -> None:
    """A configured entry keeps the built-in url and token hosts of a well-known registry unless it names its own."""
    assert router.settings(UpstreamName(CORP, CORP)).url == "http://127.0.0.1:15001"
    assert router.settings(UpstreamName("docker.io", "docker.io")).url == "https://registry-1.docker.io"
    assert router.settings(UpstreamName("quay.io", "quay.io")).tag_ttl == 60
    assert router.settings(UpstreamName("quay.io", "quay.io")).url == "https://quay.io"
    gitlab = Router(Settings(upstreams={"registry.gitlab.com": UpstreamSettings(tag_ttl=1)}))
    assert gitlab.settings(UpstreamName("registry.gitlab.com", "registry.gitlab.com")).token_hosts == ("gitlab.com",)


def test_an_exact_entry_under_a_well_known_pattern_keeps_what_is_built_in() -> None:
    """Configuring one Artifact Registry host leaves the others to the built-in pattern."""
    router = Router(Settings(upstreams={"eu-docker.pkg.dev": UpstreamSettings(tag_ttl=1)}))

    assert router.resolve("eu-docker.pkg.dev/a/b", None).upstream.entry == "eu-docker.pkg.dev"
    assert router.resolve("us-docker.pkg.dev/a/b", None).upstream.entry == "*.pkg.dev"


@pytest.mark.parametrize(
    ("host", "tag", "ttl"),
    [("docker.io", "latest", 5), ("docker.io", "v1", 10), ("docker.io", "edge", 7), ("quay.io", "edge", 300)],
)
def test_a_tag_is_fresh_by_the_first_pattern_its_upstream_or_the_default(host: str, tag: str, ttl: float) -> None:
    """The nearest setting counts: a pattern of tags, the registry's own, the global one."""
    hub = UpstreamSettings(tag_ttl=7, tag_ttls={"latest": 5, "v*": 10, "*1": 20})
    router = Router(Settings(tag_ttl=300, upstreams={"docker.io": hub}))

    assert router.tag_ttl(UpstreamName(host, host), tag) == ttl


SIGNATURE = f"sha256-{64 * 'a'}.sig"


@pytest.mark.parametrize(
    ("settings", "ttl"),
    [
        (UpstreamSettings(), 30),
        (UpstreamSettings(tag_ttl=3600), 30),
        (UpstreamSettings(tag_ttl=7), 7),
        (UpstreamSettings(tag_ttl=0), 0),
        (UpstreamSettings(tag_ttls={"v*": 900}), 30),
    ],
)
def test_lists_and_signatures_are_fresh_for_half_a_minute_at_most(settings: UpstreamSettings, ttl: float) -> None:
    """Or as long as any tag of that upstream, if that is shorter."""
    router = Router(Settings(upstreams={"quay.io": settings}))
    quay = UpstreamName("quay.io", "quay.io")

    assert router.tag_ttl(quay, SIGNATURE) == ttl
    assert router.list_ttl(quay) == ttl


def test_a_pattern_says_how_long_signatures_are_fresh() -> None:
    """An operator who names them knows better."""
    router = Router(Settings(upstreams={"quay.io": UpstreamSettings(tag_ttls={"*.sig": 900})}))
    quay = UpstreamName("quay.io", "quay.io")

    assert router.tag_ttl(quay, SIGNATURE) == 900
    assert router.tag_ttl(quay, SIGNATURE.replace(".sig", ".att")) == 30


FRONT = Settings(
    public_url="https://corp.example/mirror",
    upstreams={
        CORP: UpstreamSettings(hosts=("corp.mirror.example",)),
        "quay.io": UpstreamSettings(hosts=("quay.mirror.example", "mirror.example:5001", "[::1]:5000")),
        "docker.io": UpstreamSettings(hosts=("registry-1.docker.io", "hub.mirror.example")),
        ECR: UpstreamSettings(),
    },
)
APP = "manifests/1"


def routed(raw: str, host: str | None = None, base: str = "", settings: Settings = FRONT) -> str:
    """The target of a raw request target, as text."""
    router = Router(settings)
    asked = router.read(raw, base)
    assert asked.pull is not None
    return str(router.target(asked.pull.name, router.choose(asked, host)))


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("quay.mirror.example", "quay.io/app"),
        ("QUAY.mirror.example", "quay.io/app"),
        ("quay.mirror.example:5000", "quay.io/app"),
        ("quay.mirror.example.:5000", "quay.io/app"),
        ("quay.mirror.example.", "quay.io/app"),
        ("mirror.example:5001", "quay.io/app"),
        ("[::1]:5000", "quay.io/app"),
        ("corp.mirror.example:443", "registry.corp:5000/app"),
        ("hub.mirror.example", "docker.io/library/app"),
        ("registry-1.docker.io:443", "docker.io/library/app"),
        ("index.docker.io", "docker.io/library/app"),
        ("mirror.example", "docker.io/library/app"),
        ("mirror.example:5002", "docker.io/library/app"),
        ("[::1]", "docker.io/library/app"),
        ("ghcr.io", "docker.io/library/app"),
        ("quay.io", "docker.io/library/app"),
        ("", "docker.io/library/app"),
        (None, "docker.io/library/app"),
        (":", "docker.io/library/app"),
        ("quay.mirror.example:x", "docker.io/library/app"),
        ("quay.mirror.example, evil", "docker.io/library/app"),
        ("\udcff", "docker.io/library/app"),
        ("q" * 9000, "docker.io/library/app"),
    ],
)
def test_a_name_of_ours_means_its_upstream(host: str | None, target: str) -> None:
    """With any port where the alias has none; every other Host header, or none, means the default."""
    assert routed(f"/v2/app/{APP}", host) == target


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        (f"/quay.io/v2/org/app/{APP}", "quay.io/org/app"),
        (f"/quay.io/v2/quay.io/org/app/{APP}", "quay.io/org/app"),
        (f"/quay.io/v2/ghcr.io/org/app/{APP}", "quay.io/ghcr.io/org/app"),
        (f"/quay.io/v2/v2/app/{APP}", "quay.io/v2/app"),
        (f"/docker.io/v2/app/{APP}", "docker.io/library/app"),
        (f"/index.docker.io/v2/library/app/{APP}", "docker.io/library/app"),
        (f"/docker.io/v2/app/{APP}?ns=registry-1.docker.io", "docker.io/library/app"),
        (f"/registry.corp:5000/v2/app/{APP}", f"{CORP}/app"),
        (f"/registry.corp%3a5000/v2/app/{APP}?ns=registry.corp%3A5000", f"{CORP}/app"),
        (f"/us-docker.pkg.dev/v2/p/r/app/{APP}", "us-docker.pkg.dev/p/r/app"),
        (f"/1.dkr.ecr.eu-west-1.amazonaws.com/v2/app/{APP}", "1.dkr.ecr.eu-west-1.amazonaws.com/app"),
        (f"/mirror/v2/app/{APP}", "docker.io/library/app"),
        (f"/mirror/v2/quay.io/app/{APP}", "quay.io/app"),
        (f"/mirror/quay.io/v2/app/{APP}", "quay.io/app"),
        (f"http://elsewhere/quay.io/v2/app/{APP}", "quay.io/app"),
    ],
)
def test_a_path_before_v2_names_an_upstream(raw: str, target: str) -> None:
    """What Docker and containerd make of a registry mirror's path; the path of public_url is only taken off."""
    assert routed(raw) == target


@pytest.mark.parametrize(
    ("raw", "host", "target"),
    [
        (f"/v2/ghcr.io/app/{APP}?ns=public.ecr.aws", "quay.mirror.example", "public.ecr.aws/ghcr.io/app"),
        (f"/ghcr.io/v2/app/{APP}", "quay.mirror.example", "ghcr.io/app"),
        (f"/v2/ghcr.io/app/{APP}", "quay.mirror.example", "quay.io/ghcr.io/app"),
        (f"/v2/quay.io/app/{APP}", "quay.mirror.example", "quay.io/app"),
        (f"/v2/evil.test/app/{APP}", "quay.mirror.example", "quay.io/evil.test/app"),
        (f"/v2/app/{APP}?ns=docker.io&ns=index.docker.io", "quay.mirror.example", "docker.io/library/app"),
        (f"http://quay.mirror.example/v2/app/{APP}", "hub.mirror.example", "quay.io/app"),
    ],
)
def test_ns_then_path_then_host_then_the_first_component(raw: str, host: str, target: str) -> None:
    """The order is an interface, and what comes later is then part of the name."""
    asked = Router(FRONT).read(raw)

    assert routed(raw, asked.target.authority or host) == target


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ("/v2/?ns=evil.test", UpstreamRefused),
        ("/v2/?ns=", NameInvalid),
        ("/v2/?ns=quay.io&ns=evil.test", NameInvalid),
        ("/v2/?ns=quay.io&ns=ghcr.io", NameInvalid),
        ("/v2/?ns=quay.io&ns=", NameInvalid),
        ("/v2/_catalog?ns=evil.test", UpstreamRefused),
        ("/quay.io/v2/?ns=ghcr.io", Unsupported),
        ("/v2/?ns=\u212aquay.io", NameInvalid),
    ],
)
def test_an_ns_that_names_no_registry_or_two_is_refused(raw: str, error: type[MirrorError]) -> None:
    """Everywhere, again each time, and never echoed; a path and an ns= that disagree mean nothing."""
    router = Router(FRONT)
    asked = router.read(raw)

    for _ in range(2):
        with pytest.raises(error):
            router.choose(asked, None)
    assert asked.namespace == ("ghcr.io" if error is Unsupported else None)


@pytest.mark.parametrize(
    ("raw", "is_api"),
    [("/evil.test/v2/", False), ("/a/quay.io/v2/", False), ("//quay.io/v2/", False), ("/quay.io//v2/", False),
     ("//v2/", False), ("/v1/", False), ("/quay.io/", False), ("/mirror", False), ("/mirror/", False),
     ("/mirror/v2", True), ("/v2", True), ("/quay.io/v2", True), ("/QUAY.io/v2/x", True)],
)  # fmt: skip
def test_other_paths_before_v2_are_not_ours(raw: str, *, is_api: bool) -> None:
    """Only what names a known upstream, whole, or is the path of public_url."""
    assert Router(FRONT).read(raw).is_api is is_api


@pytest.mark.parametrize(
    ("raw", "base", "prefix"),
    [
        ("/v2/", "", "/mirror"),
        ("/mirror/v2/", "", "/mirror"),
        ("/quay.io/v2/", "", "/mirror/quay.io"),
        ("/mirror/registry.corp%3A5000/v2/", "", "/mirror/registry.corp:5000"),
        ("/v2/", "/outer", "/outer"),
        ("/quay.io/v2/", "/outer", "/outer/quay.io"),
        ("/outer/quay.io/v2/", "/outer", "/outer/quay.io"),
        ("/mirror/quay.io/v2/", "/outer", "/outer/quay.io"),
        ("/nothing", "/outer", "/outer"),
    ],
)
def test_links_to_us_begin_with_what_the_client_has_to_ask(raw: str, base: str, prefix: str) -> None:
    """The path that a proxy takes off, or else that of public_url, and the path that names the upstream."""
    assert Router(FRONT).read(raw, base).prefix == prefix
    assert base or Router(SETTINGS).read("/quay.io/v2/").prefix == "/quay.io"


def test_what_is_remembered_is_bounded_and_does_not_change_the_answer() -> None:
    """A second reading is the first one; endless targets are read all the same."""
    router = Router(FRONT)
    raw = f"/v2/quay.io/app/{APP}"

    assert router.read(raw) is router.read(raw)
    assert router.read(raw + "?" + "x" * 9000).pull == router.read(raw).pull


names = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"([a-zA-Z0-9.:_-]{1,12}/){0,3}[a-z0-9]{1,5}", fullmatch=True),
    st.sampled_from(["docker.io/", "ghcr.io/", f"{CORP}/", ""]).flatmap(
        lambda prefix: st.from_regex(r"[a-z0-9/:.]{0,12}", fullmatch=True).map(lambda rest: prefix + rest)
    ),
)


@given(names, st.none() | st.text(max_size=30) | st.sampled_from(["docker.io", "ghcr.io", CORP, "evil.corp"]))
def test_whatever_a_client_sends_is_routed_or_refused_in_our_own_words(name: str, ns: str | None) -> None:
    """Routing raises nothing but our errors, and what it accepts is a known registry and a valid repository."""
    router = Router(SETTINGS)
    try:
        target = router.resolve(name, ns)
    except MirrorError:
        return
    assert router.settings(target.upstream).url
    # A resolved target, asked for by its full name, is itself.
    assert router.resolve(target.repository, target.upstream.host).upstream == target.upstream


@given(
    st.sampled_from(
        ["docker.io", "index.docker.io", "ghcr.io", CORP, "us-docker.pkg.dev", "1.dkr.ecr.eu.amazonaws.com"]
    ),
    st.from_regex(r"[a-z0-9]{1,6}(/[a-z0-9]{1,6}){0,3}", fullmatch=True),
)
def test_prefix_and_ns_mean_the_same(host: str, repository: str) -> None:
    """/v2/<host>/<repository>, ns=<host> and both at once lead to one target."""
    router = Router(SETTINGS)
    by_prefix = router.resolve(f"{host}/{repository}", None)

    assert by_prefix == router.resolve(repository, host) == router.resolve(f"{host}/{repository}", host)


@given(
    st.text(max_size=60)
    | st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape"))
    | st.lists(
        st.sampled_from(["v2", "quay.io", "registry.corp%3A5000", "app", "manifests", "1", "..", "%2F", "%ff", "?ns=",
                         "ghcr.io", "&ns=quay.io", "mirror", "", "tags", "list", "http:", "*"]),
        max_size=9,
    ).map(lambda parts: "/" + "/".join(parts).replace("/?", "?")),
    st.none() | st.text(max_size=20) | st.sampled_from(["quay.mirror.example:1", "mirror.example:5001"]),
    st.sampled_from(["", "/outer"]),
)  # fmt: skip
def test_any_request_target_is_routed_or_refused_in_our_own_words(raw: str, host: str | None, base: str) -> None:
    """Nothing but our errors, and what is accepted can be asked again under the prefix that it got."""
    router = Router(FRONT)
    asked = router.read(raw, base)
    wanted = router.wanted(raw, base, host)
    try:
        chosen = router.choose(asked, asked.target.authority or host)
        target = router.target(asked.pull.name, chosen) if asked.pull else None
        reference = read_reference(asked.pull) if asked.pull else None
    except MirrorError:
        assert wanted is None
        return
    assert wanted == (Wanted(asked, asked.pull, target, reference) if asked.pull and target else None)
    if target is not None and asked.pull is not None:
        assert router.settings(target.upstream).url
        ns = f"?ns={asked.namespace}" if asked.namespace else ""
        again = router.read(f"{asked.prefix}/v2/{asked.pull.name}/{APP}{ns}", base)
        assert again.pull is not None
        assert router.target(again.pull.name, router.choose(again, asked.target.authority or host)) == target


def test_a_proxy_s_word_goes_before_what_a_client_calls_us() -> None:
    """And an absolute target before the Host header, also where all of it is looked up at once."""
    router = Router(FRONT)
    path = f"/v2/app/{APP}"

    def host(raw: str, called: str | None, proxied: str | None = None) -> str:
        wanted = router.wanted(raw, "", called, proxied)
        assert wanted is not None
        return wanted.target.upstream.host

    alias = "quay.mirror.example:1"
    assert host(path, alias) == host(path, "mirror.test", alias) == host(f"http://{alias}{path}", "mirror.test")
    assert host(path, alias, "mirror.test") == host(path, None) != host(path, alias)
