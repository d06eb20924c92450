"""Credentials come from configuration, follow their file, and do not show themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from mirror.auth.credentials import Credential, Credentials
from mirror.config import UpstreamSettings
from mirror.oci.errors import CredentialRejected

SECRET = "hunter2-planted"


@pytest.fixture
async def credentials() -> AsyncIterator[Credentials]:
    """A reader of credentials."""
    reader = Credentials()
    yield reader
    await reader.close()


async def test_no_credential_is_none(credentials: Credentials) -> None:
    """Without a user name we are anonymous."""
    assert await credentials.get(UpstreamSettings()) is None


async def test_a_password_from_configuration(credentials: Credentials) -> None:
    """User name and password make the header of HTTP Basic, in UTF-8."""
    credential = await credentials.get(UpstreamSettings(username="ünal", password=SecretStr("pä:ss")))

    assert credential == Credential("ünal", "pä:ss")
    assert credential.header == "Basic w7xuYWw6cMOkOnNz"


async def test_a_password_file_is_read_again_when_it_changes(credentials: Credentials, tmp_path: Path) -> None:
    """A rotated secret is used without a restart; the line's end is not part of it."""
    file = tmp_path / "password"
    settings = UpstreamSettings(username="ci", password_file=file)
    file.write_text("first\n")
    assert await credentials.get(settings) == Credential("ci", "first")

    replacement = tmp_path / "replacement"
    replacement.write_text("second\r\n")
    replacement.rename(file)

    assert await credentials.get(settings) == Credential("ci", "second")


async def test_a_password_file_that_cannot_be_read_is_the_operators_problem(
    credentials: Credentials, tmp_path: Path
) -> None:
    """It counts as a rejected credential, so that cached content is still served, and names the file."""
    missing = tmp_path / "missing"

    with pytest.raises(CredentialRejected, match="missing cannot be read: No such file"):
        await credentials.get(UpstreamSettings(username="ci", password_file=missing))


async def test_a_password_file_that_is_no_text_is_the_operators_problem(
    credentials: Credentials, tmp_path: Path
) -> None:
    """The message does not quote the bytes."""
    file = tmp_path / "password"
    file.write_bytes(b"\xff\xfe")

    with pytest.raises(CredentialRejected, match="not UTF-8 text"):
        await credentials.get(UpstreamSettings(username="ci", password_file=file))


def test_a_credential_does_not_show_its_password() -> None:
    """Neither its repr nor the key that it gives to tokens."""
    credential = Credential("ci", SECRET)

    assert SECRET not in repr(credential) + str(credential) + credential.identity


def test_different_credentials_have_different_identities() -> None:
    """Also where user name and password put together are the same."""
    identities = {Credential(*pair).identity for pair in [("a", "b"), ("a", "c"), ("ab", ""), ("", "ab"), ("a:", "b")]}

    assert len(identities) == 5
