"""Credentials come from configuration, follow their file, and do not show themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from mirror.auth.credentials import Credential, Credentials
from mirror.config import UpstreamSettings
from mirror.oci.errors import CredentialRejected
from mirror.routing import UpstreamName

SECRET = "hunter2-planted"
NAME = UpstreamName("registry.test", "registry.test")


@pytest.fixture
async def credentials() -> AsyncIterator[Credentials]:
    """A reader of credentials."""
    reader = Credentials()
    yield reader
    await reader.close()


async def test_no_credential_is_none(credentials: Credentials) -> None:
    """Without a user name we are anonymous."""
    assert await credentials.get(UpstreamSettings(), NAME) is None


async def test_a_password_from_configuration(credentials: Credentials) -> None:
    """User name and password make the header of HTTP Basic, in UTF-8."""
    credential = await credentials.get(UpstreamSettings(username="ünal", password=SecretStr("pä:ss")), NAME)

    assert credential == Credential("ünal", "pä:ss")
    assert credential.header == "Basic w7xuYWw6cMOkOnNz"


async def test_a_password_file_is_read_again_when_it_changes(credentials: Credentials, tmp_path: Path) -> None:
    """A rotated secret is used without a restart; the line's end is not part of it."""
    file = tmp_path / "password"
    settings = UpstreamSettings(username="ci", password_file=file)
    file.write_text("first\n")
    assert await credentials.get(settings, NAME) == Credential("ci", "first")

    replacement = tmp_path / "replacement"
    replacement.write_text("second\r\n")
    replacement.rename(file)

    assert await credentials.get(settings, NAME) == Credential("ci", "second")


async def test_a_password_file_that_cannot_be_read_is_the_operators_problem(
    credentials: Credentials, tmp_path: Path
) -> None:
    """It counts as a rejected credential, so that cached content is still served, and names the file."""
    missing = tmp_path / "missing"

    with pytest.raises(CredentialRejected, match="missing cannot be read: No such file"):
        await credentials.get(UpstreamSettings(username="ci", password_file=missing), NAME)


async def test_a_password_file_that_is_no_text_is_the_operators_problem(
    credentials: Credentials, tmp_path: Path
) -> None:
    """The message does not quote the bytes."""
    file = tmp_path / "password"
    file.write_bytes(b"\xff\xfe")

    with pytest.raises(CredentialRejected, match="not UTF-8 text"):
        await credentials.get(UpstreamSettings(username="ci", password_file=file), NAME)


def test_a_credential_does_not_show_its_password() -> None:
    """Neither its repr nor the key that it gives to tokens."""
    credential = Credential("ci", SECRET)

    assert SECRET not in repr(credential) + str(credential) + credential.identity


def test_different_credentials_have_different_identities() -> None:
    """Also where user name and password put together are the same."""
    identities = {Credential(*pair).identity for pair in [("a", "b"), ("a", "c"), ("ab", ""), ("", "ab"), ("a:", "b")]}

    assert len(identities) == 5


async def test_a_login_of_docker_is_read_again_when_it_changes(credentials: Credentials, tmp_path: Path) -> None:
    """As Kubernetes replaces a secret: by another target of a link."""
    settings = UpstreamSettings(docker_config=tmp_path / "config.json")
    for number, password in enumerate(("first", "second")):
        secret = tmp_path / f"{number}"
        secret.write_text(json.dumps({"auths": {"registry.test": {"username": "ci", "password": password}}}))
        link = tmp_path / "link"
        link.symlink_to(secret)
        link.rename(tmp_path / "config.json")

        assert await credentials.get(settings, NAME) == Credential("ci", password)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "config.json is not Docker's config.json"),
        (
            json.dumps({"auths": {"registry.test": {"auth": SECRET}}}),
            "an auth for registry.test that is not",
        ),
        (json.dumps({"auths": {}}), "config.json has no login for registry.test; expected it in auths"),
        (json.dumps({"credsStore": "pass"}), "leaves the login to docker-credential-pass for registry.test"),
    ],
)
async def test_a_login_that_is_not_there_is_the_operators_problem(
    credentials: Credentials, tmp_path: Path, content: str, problem: str
) -> None:
    """Who names the file means us to log in: to go on as nobody would cost the quota of nobody. No secret is told."""
    file = tmp_path / "config.json"
    file.write_text(content)

    with pytest.raises(CredentialRejected, match=problem) as caught:
        await credentials.get(UpstreamSettings(docker_config=file), NAME)
    assert SECRET not in str(caught.value)


async def test_a_registry_of_a_pattern_needs_no_login(credentials: Credentials, tmp_path: Path) -> None:
    """Others that the pattern stands for may have one."""
    file = tmp_path / "config.json"
    file.write_text('{"auths": {"a.corp.test": {"username": "ci", "password": "x"}}}')
    settings = UpstreamSettings(docker_config=file)

    assert await credentials.get(settings, UpstreamName("b.corp.test", "*.corp.test")) is None
    assert await credentials.get(settings, UpstreamName("a.corp.test", "*.corp.test")) == Credential("ci", "x")
