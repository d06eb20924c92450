"""Credentials go to no token endpoint that the upstream has no claim to."""

from __future__ import annotations

import pytest
from yarl import URL

from mirror.auth.realm import check_realm, resolve_realm
from mirror.oci.errors import UpstreamUnavailable

HUB = "https://registry-1.docker.io"


@pytest.mark.parametrize(
    ("upstream", "realm", "token_hosts"),
    [
        pytest.param(HUB, "https://auth.docker.io/token", (), id="same-registrable-domain"),
        pytest.param("https://quay.io", "https://quay.io/v2/auth", (), id="same-host"),
        pytest.param("https://harbor.corp:8443", "https://harbor.corp/service/token", (), id="another-port"),
        pytest.param("https://a.b.example.co.uk", "https://auth.example.co.uk/", (), id="suffix-of-two-labels"),
        pytest.param("https://REGISTRY.example.com", "https://Auth.Example.com./t", (), id="case-and-final-dot"),
        pytest.param("http://127.0.0.1:5000", "http://127.0.0.1:5001/t", (), id="the-upstreams-own-address"),
        pytest.param("http://registry:5000", "https://registry/t", (), id="http-upstream-https-realm"),
        pytest.param("https://r.one.io", "https://sso.two.com/t", ("sso.two.com",), id="listed"),
        pytest.param("https://r.one.io", "https://sso.two.com:8443/t", ("sso.two.com:8443",), id="listed-with-port"),
        pytest.param("https://r.one.io", "https://SSO.two.com/t", ("Sso.Two.com",), id="listed-in-another-case"),
    ],
)
def test_own_and_listed_endpoints_are_permitted(upstream: str, realm: str, token_hosts: tuple[str, ...]) -> None:
    """Same host, same registrable domain, or named in token_hosts."""
    check_realm(URL(realm), URL(upstream), token_hosts)


@pytest.mark.parametrize(
    ("upstream", "realm", "token_hosts"),
    [
        pytest.param(HUB, "https://evil.example/token", (), id="another-domain"),
        pytest.param(HUB, "http://auth.docker.io/token", (), id="https-to-http"),
        pytest.param(HUB, "https://docker.io.evil.example/token", (), id="domain-as-a-prefix"),
        pytest.param(HUB, "https://evildocker.io/token", (), id="domain-as-a-tail"),
        pytest.param("https://one.co.uk", "https://two.co.uk/t", (), id="public-suffix-of-two-labels"),
        pytest.param("https://one.github.io", "https://two.github.io/t", (), id="suffix-with-a-private-owner"),
        pytest.param("https://registry.corp", "https://gitlab.corp/t", (), id="own-top-level"),
        pytest.param("https://registry", "https://auth/t", (), id="single-labels"),
        pytest.param("https://10.0.0.1", "https://10.0.0.2/t", (), id="neighbouring-addresses"),
        pytest.param("https://1.2.3.4", "https://9.2.3.4/t", (), id="addresses-are-no-domains"),
        pytest.param(HUB, "https://xn--docker-.io/t", (), id="no-idna"),
        pytest.param("https://xn--a.io", "https://xn--b.io/t", (), id="no-idna-twice"),
        pytest.param(HUB, "https://127.0.0.1/t", (), id="loopback-literal"),
        pytest.param(HUB, "https://[::1]/t", (), id="loopback-literal-v6"),
        pytest.param(HUB, "https://169.254.169.254/latest", (), id="metadata-literal"),
        pytest.param(HUB, "https://sso.two.com/t", ("two.com",), id="below-a-listed-host"),
        pytest.param(HUB, "https://sso.two.com/t", ("sso.two.com:8443",), id="listed-with-another-port"),
    ],
)
def test_foreign_endpoints_are_refused(upstream: str, realm: str, token_hosts: tuple[str, ...]) -> None:
    """Anything else is no answer with reason realm, and the message names both hosts."""
    with pytest.raises(UpstreamUnavailable) as caught:
        check_realm(URL(realm), URL(upstream), token_hosts)

    assert caught.value.reason == "realm"
    assert str(URL(upstream).raw_host) in caught.value.message


@pytest.mark.parametrize(
    ("realm", "expected"),
    [
        ("https://auth.example/t?a=b", "https://auth.example/t?a=b"),
        ("/service/token", "https://r.example:8443/service/token"),
        ("token", "https://r.example:8443/v2/x/manifests/token"),
        ("//auth.example/t", "https://auth.example/t"),
        ("https://auth.example/t#fragment", "https://auth.example/t"),
    ],
)
def test_a_realm_is_resolved_against_the_request(realm: str, expected: str) -> None:
    """Relative realms belong to the URL that answered with them."""
    assert resolve_realm(realm, URL("https://r.example:8443/v2/x/manifests/latest")) == URL(expected)


@pytest.mark.parametrize(
    "realm",
    [
        "http://[::1",
        "file:///etc/passwd",
        "https://user:secret@auth.example/",
        "data:,x",
        f"https://{'secret.' * 50}example/",
    ],
)
def test_a_realm_that_is_no_plain_url_is_refused(realm: str) -> None:
    """Nothing but http and https is a token endpoint; the message does not repeat what was sent."""
    with pytest.raises(UpstreamUnavailable) as caught:
        resolve_realm(realm, URL("https://r.example/v2/"))

    assert caught.value.reason == "realm"
    assert "secret" not in caught.value.message
