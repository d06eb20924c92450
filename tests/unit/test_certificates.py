"""What is wrong with the files for TLS is found when the configuration is read, and said in its terms."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.api.tls import server_context
from mirror.config import Settings, Tls, load, warnings
from mirror.config.certificates import certificate_ends, wrong_certificate
from mirror.config.checks import check
from tests.certificates import CA, CLIENT, HERE, MUTUAL, SERVER
from tests.upstream.certificates import CA_FILE

PEM = (HERE / "server.pem").read_text()
DER = ssl.PEM_cert_to_DER_cert(PEM[PEM.index("-----BEGIN") :])


def mistakes(**tls: Path | str) -> list[str]:
    """What is said of a `tls` section, without the directory."""
    found = check(Settings(tls=Tls.model_validate(tls)))
    return [f"{'.'.join(map(str, key))} {predicate}".replace(f"{HERE}/", "") for key, predicate in found]


@pytest.mark.parametrize("tls", [SERVER, MUTUAL, Tls(), Tls(minimum="1.3")])
def test_what_is_right_passes(tls: Tls) -> None:
    """And makes what begins TLS, where there is a certificate."""
    assert list(check(Settings(tls=tls))) == []
    context = server_context(tls)
    assert (context is None) == (tls.certificate is None)
    if context is not None:
        assert context.verify_mode == (ssl.CERT_NONE if tls.client_ca is None else ssl.CERT_REQUIRED)


def test_the_key_may_stand_with_the_certificate(tmp_path: Path) -> None:
    """In one file, certificate first or key first."""
    for order in (("server.pem", "server.key"), ("server.key", "server.pem")):
        both = tmp_path / "both.pem"
        both.write_text("".join((HERE / name).read_text() for name in order))
        assert mistakes(certificate=both) == []
        assert server_context(Tls(certificate=both)) is not None


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        ({"key": HERE / "server.key"}, "tls.key is 'server.key', without a certificate; expected tls.certificate, too"),
        ({"client_ca": CA}, "tls.client_ca is 'ca.pem', without a certificate; expected tls.certificate, too"),
        (
            {"certificate": HERE / "none.pem"},
            "tls.certificate is 'none.pem', which cannot be read (No such file or directory); expected a readable file",
        ),
        (
            {"certificate": HERE / "server.pem", "key": HERE},
            f"tls.key is '{HERE}', which is not a file; expected a readable file",
        ),
        (
            {"certificate": HERE / "server.key"},
            "tls.certificate is 'server.key', which holds no certificate; expected a PEM file with certificates",
        ),
        (
            {"certificate": HERE / "server.pem"},
            "tls.certificate is 'server.pem', which holds no private key; "
            "expected a PEM file with the certificate's key, unencrypted",
        ),
        (
            {"certificate": HERE / "server.pem", "key": HERE / "renewed.key"},
            "tls.key is 'renewed.key', which holds the key of another certificate; "
            "expected a PEM file with the certificate's key, unencrypted",
        ),
        (
            {"certificate": HERE / "server.pem", "key": HERE / "encrypted.key"},
            "tls.key is 'encrypted.key', which holds an encrypted key; "
            "expected a PEM file with the certificate's key, unencrypted",
        ),
        (
            {"certificate": HERE / "server.pem", "key": HERE / "server.key", "client_ca": CLIENT[1]},
            "tls.client_ca is 'client.key', which holds no certificate; expected a PEM file",
        ),
    ],
)
def test_each_mistake_says_what_was_expected(tls: dict[str, Path], expected: str) -> None:
    """By key and value, one line each."""
    assert mistakes(**tls) == [expected]


def test_a_damaged_certificate_is_no_certificate(tmp_path: Path) -> None:
    """Whatever part of its text is missing."""
    damaged = tmp_path / "damaged.pem"
    damaged.write_text(PEM[:300] + PEM[340:])
    assert wrong_certificate(damaged) == "holds a damaged certificate"


def test_an_expired_certificate_is_a_warning(tmp_path: Path) -> None:
    """The mirror starts with it: some of its clients may not mind, and none would like it better down."""
    tls = Tls(certificate=HERE / "expired.pem", key=HERE / "server.key")
    assert list(check(Settings(tls=tls))) == []
    [warning] = warnings(Settings(tls=tls))
    assert warning.endswith("expired.pem', which expired on 2021-01-01 00:00 UTC")
    assert warnings(Settings(tls=SERVER)) == []
    assert warnings(Settings()) == []


def test_the_end_of_a_certificate_is_read(tmp_path: Path) -> None:
    """In either form of time that there is: two digits for the year before 2050, four from then on."""
    assert certificate_ends(HERE / "expired.pem") == ssl.cert_time_to_seconds("Jan  1 00:00:00 2021 GMT")
    assert certificate_ends(HERE / "server.pem") == ssl.cert_time_to_seconds("Jan  1 00:00:00 2126 GMT")
    assert certificate_ends(CA_FILE) == ssl.cert_time_to_seconds("Oct 31 17:43:02 2126 GMT")


@given(st.integers(0, len(DER)), st.binary(max_size=8))
def test_what_is_no_certificate_has_no_end(tmp_path_factory: pytest.TempPathFactory, cut: int, more: bytes) -> None:
    """Whatever stands in it, it is an end or a ValueError."""
    file = tmp_path_factory.getbasetemp() / "any.pem"
    file.write_text(ssl.DER_cert_to_PEM_cert(DER[:cut] + more + DER[cut + len(more) :]))
    try:
        assert isinstance(certificate_ends(file), float)
    except ValueError:
        pass


def test_mistakes_of_a_file_stand_where_it_names_them(tmp_path: Path) -> None:
    """As all others, by file and line."""
    config = tmp_path / "mirror.yaml"
    config.write_text(f"tag_ttl: 5m\ntls:\n  certificate: {HERE}/server.pem\n  key: {HERE}/renewed.key\n")
    with pytest.raises(Exception, match=r"mirror\.yaml:4: tls\.key is .*renewed\.key'"):
        load(config, {})
