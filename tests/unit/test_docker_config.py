"""Docker's config.json: which login it has for which registry."""

from __future__ import annotations

import base64
import json

import pytest

from mirror.config.docker_config import DockerConfig, Login


def parsed(**content: object) -> DockerConfig:
    """A file with these keys."""
    return DockerConfig.parse(json.dumps(content).encode())


def auth(text: str) -> str:
    """As `docker login` writes a user name and a password."""
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("ghcr.io", "ghcr.io"),
        ("https://GHCR.io", "ghcr.io"),
        ("http://registry.corp:5000/v2/", "registry.corp:5000"),
        ("https://registry.corp:5000/", "registry.corp:5000"),
    ],
)
def test_a_registry_is_found_by_all_its_keys(key: str, host: str) -> None:
    """With or without scheme and version, Docker Hub under each of its names."""
    assert parsed(auths={key: {"auth": auth("ci:pa:ss")}}).login(host) == Login("ci", "pa:ss")


@pytest.mark.parametrize("key", ["ghcr.io/team/app", "", "https://", "not a host", "ghcr.io:99999"])
def test_a_key_of_something_else_is_left_alone(key: str) -> None:
    """Of a part of a registry, as other tools write it: it is no login for the whole."""
    config = parsed(auths={key: {"auth": auth("ci:x")}})
    assert config.login("ghcr.io") is None


def test_each_form_of_a_login_is_understood() -> None:
    """Apart, in one, and as an identity token, with which `auth` has no password."""
    config = parsed(
        auths={
            "a.test": {"username": "ci", "password": "x"},
            "b.test": {"auth": auth("00000000-0000-0000-0000-000000000000:"), "identitytoken": "token"},
            "c.test": {},
            "d.test": None,
        }
    )
    assert config.login("a.test") == Login("ci", "x")
    assert config.login("b.test") == Login("00000000-0000-0000-0000-000000000000", "", "token")
    assert config.login("c.test") is None
    assert config.login("d.test") is None


def test_a_helper_is_named() -> None:
    """The registry's own before the one for all."""
    config = parsed(credHelpers={"a.test": "ecr-login"}, credsStore="desktop")
    assert (config.helper("a.test"), config.helper("b.test")) == ("ecr-login", "desktop")
    assert parsed().helper("a.test") is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not Docker's config.json"),
        (b"[]", "is not Docker's config.json"),
        (b'{"auths": {"a.test": {"auth": 7}}}', "is not Docker's config.json"),
        (b"\xff", "is not Docker's config.json"),
        (b"[" * 100_000, "is not Docker's config.json"),
        (b" " * (300 << 10), "is longer than 256 KiB"),
        (b'{"auths": {"a.test": {"auth": "planted"}}}', "has an auth for a.test that is not the base64"),
        (b'{"auths": {"a.test": {"auth": "cGxhbnRlZA=="}}}', "has an auth for a.test that is not the base64"),
    ],
)
def test_what_is_wrong_is_said_without_a_secret(content: bytes, problem: str) -> None:
    """As the rest of a sentence that begins with the file."""
    with pytest.raises(ValueError, match=problem) as caught:
        DockerConfig.parse(content)
    assert "planted" not in str(caught.value)


def test_no_secret_shows() -> None:
    """In no repr."""
    assert "x" not in repr(Login("ci", "x", "x"))
