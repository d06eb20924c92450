"""Challenges are read as registries write them, and nothing that they can write breaks the reading."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.auth.challenge import Challenge, choose, own_scope, parse_challenges

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"

CASES = [
    pytest.param(
        ['Bearer realm="https://auth.docker.io/token",service="registry.docker.io"'],
        [("bearer", {"realm": "https://auth.docker.io/token", "service": "registry.docker.io"})],
        id="docker-hub",
    ),
    pytest.param(['Basic realm="harbor"'], [("basic", {"realm": "harbor"})], id="basic"),
    pytest.param(["Basic"], [("basic", {})], id="basic-without-a-realm"),
    pytest.param(
        ['Negotiate, Basic realm="x"'], [("negotiate", {}), ("basic", {"realm": "x"})], id="two-in-one-header"
    ),
    pytest.param(
        ['Bearer realm="https://a/t",service="s", Basic realm="b, c"'],
        [("bearer", {"realm": "https://a/t", "service": "s"}), ("basic", {"realm": "b, c"})],
        id="two-with-parameters-in-one-header",
    ),
    pytest.param(
        ['Basic realm="x"', 'Bearer realm="https://a/t"'],
        [("basic", {"realm": "x"}), ("bearer", {"realm": "https://a/t"})],
        id="two-headers",
    ),
    pytest.param(
        ["Negotiate YIIB/+a0==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})], id="base64-skipped"
    ),
    pytest.param(
        ["Negotiate abc=", 'BASIC realm="y"'], [("negotiate", {}), ("basic", {"realm": "y"})], id="base64-at-the-end"
    ),
    pytest.param(
        ['BASIC realm="Sonatype Nexus Repository Manager"'],
        [("basic", {"realm": "Sonatype Nexus Repository Manager"})],
        id="scheme-in-capitals-nexus",
    ),
    pytest.param(
        ['bEaReR REALM="https://A/T",Service="S"'],
        [("bearer", {"realm": "https://A/T", "service": "S"})],
        id="names-in-any-case-values-as-they-are",
    ),
    pytest.param(
        ['Bearer realm="https://gcr.io/v2/token",service=gcr.io'],
        [("bearer", {"realm": "https://gcr.io/v2/token", "service": "gcr.io"})],
        id="unquoted-value-gcr",
    ),
    pytest.param(
        ["Bearer realm=https://r.example/token?a=b,service=r.example"],
        [("bearer", {"realm": "https://r.example/token?a=b", "service": "r.example"})],
        id="unquoted-url",
    ),
    pytest.param(
        ['Bearer realm="https://a/t",service=""'],
        [("bearer", {"realm": "https://a/t", "service": ""})],
        id="empty-quoted-value",
    ),
    pytest.param(
        ['Bearer service=,realm="https://a/t"'],
        [("bearer", {"service": "", "realm": "https://a/t"})],
        id="empty-unquoted-value",
    ),
    pytest.param(
        [r'Bearer realm="https://a/t",service="say \"hi\" \\ bye"'],
        [("bearer", {"realm": "https://a/t", "service": r'say "hi" \ bye'})],
        id="escapes",
    ),
    pytest.param(
        ['Bearer  realm = "https://a/t" , service\t=\t"s"  ,scope = x '],
        [("bearer", {"realm": "https://a/t", "service": "s", "scope": "x"})],
        id="spaces-around-equals-and-comma",
    ),
    pytest.param(
        ['Bearer realm="https://a/t",scope="repository:a:pull,push"'],
        [("bearer", {"realm": "https://a/t", "scope": "repository:a:pull,push"})],
        id="comma-in-quotes",
    ),
    pytest.param(
        ['Bearer realm="https://nvcr.io/proxy_auth?scope=repository:nvidia/cuda:pull,push"'],
        [("bearer", {"realm": "https://nvcr.io/proxy_auth?scope=repository:nvidia/cuda:pull,push"})],
        id="equals-and-question-mark-in-quotes-nvcr",
    ),
    pytest.param(
        ['Bearer realm="https://a/t",scope="repository:a:pull repository:b:pull"'],
        [("bearer", {"realm": "https://a/t", "scope": "repository:a:pull repository:b:pull"})],
        id="several-scopes",
    ),
    pytest.param(
        ['Bearer realm="https://a/t" service="s"'],
        [("bearer", {"realm": "https://a/t", "service": "s"})],
        id="no-comma-between-parameters",
    ),
    pytest.param(
        ['Bearer realm="https://a/t",error="insufficient_scope"'],
        [("bearer", {"realm": "https://a/t", "error": "insufficient_scope"})],
        id="error-parameter",
    ),
    pytest.param(
        ['Bearer realm="https://a/t",realm="https://evil/t"'],
        [("bearer", {"realm": "https://a/t"})],
        id="the-first-of-a-repeated-parameter",
    ),
    pytest.param([',, ,Basic realm="x",,'], [("basic", {"realm": "x"})], id="empty-list-elements"),
    pytest.param(['Basic realm="open'], [("basic", {"realm": "open"})], id="closing-quote-missing"),
    pytest.param(['realm="https://a/t"'], [], id="parameters-without-a-scheme"),
    pytest.param(['"quoted" (nonsense) Basic realm=x'], [("basic", {"realm": "x"})], id="nonsense-before"),
    pytest.param([], [], id="no-header"),
    pytest.param([""], [], id="empty-header"),
]


def seen(challenges: list[Challenge]) -> list[tuple[str, dict[str, str]]]:
    """Challenges as plain values."""
    return [(challenge.scheme, dict(challenge.parameters)) for challenge in challenges]


@pytest.mark.parametrize(("headers", "expected"), CASES)
def test_challenges_are_read_as_they_are_written(headers: list[str], expected: list[object]) -> None:
    """Each form that a registry has been seen to send gives its schemes and parameters."""
    assert seen(parse_challenges(headers)) == expected


@pytest.mark.parametrize(
    ("header", "scheme"),
    [
        ('Basic realm="b", Bearer realm="https://a/t"', "bearer"),
        ('Negotiate, Basic realm="b"', "basic"),
        ('Digest realm="d", nonce="n"', None),
        ('Bearer service="no realm", Basic realm="b"', "basic"),
        ("Bearer", None),
    ],
)
def test_bearer_is_chosen_before_basic_and_others_never(header: str, scheme: str | None) -> None:
    """Bearer counts only with a realm: without one there is nowhere to get a token."""
    chosen = choose(parse_challenges([header]))

    assert (chosen.scheme if chosen else None) == scheme


@pytest.mark.parametrize(
    ("scope", "own"),
    [
        ("aws", "aws"),
        ("repository:samalba/my-app:pull,push", ""),
        ("repository:a:pull repository:b:pull", ""),
        ("repository(plugin):host:5000/x:pull", "repository(plugin):host:5000/x:pull"),
        ("registry:catalog:*", ""),
        ("", ""),
        ("  aws   extra ", "aws extra"),
    ],
)
def test_a_scope_of_no_repository_is_kept(scope: str, own: str) -> None:
    """Scopes of repositories are ours to write, since `/v2/` names placeholders; any other kind is the registry's."""
    assert own_scope(parse_challenges([f'Bearer realm="https://a/t",scope="{scope}"'])[0]) == own


def test_an_enormous_header_is_cut() -> None:
    """A header of megabytes costs no more than its first 16 KiB."""
    challenges = parse_challenges(["a=b," * 1_000_000 + 'Basic realm="x"'])

    assert challenges == []


@given(st.lists(st.text(), max_size=4))
def test_no_text_breaks_the_reading(headers: list[str]) -> None:
    """Whatever an upstream sends, reading and choosing raise nothing."""
    choose(parse_challenges(headers))


@given(
    st.lists(
        st.tuples(
            st.text(TOKEN, min_size=1),
            st.dictionaries(st.text(TOKEN, min_size=1), st.text(st.characters(codec="utf-8")), min_size=1, max_size=4),
        ),
        max_size=3,
    )
)
def test_quoting_loses_nothing(challenges: list[tuple[str, dict[str, str]]]) -> None:
    """Any values, quoted and escaped by the grammar, come back as they were."""
    header = ", ".join(f"{scheme} " + ", ".join(map(quoted, fields.items())) for scheme, fields in challenges)

    assert seen(parse_challenges([header[: 16 << 10]])) == challenges


def quoted(field: tuple[str, str]) -> str:
    """A parameter with its value as a quoted string."""
    escaped = field[1].replace("\\", "\\\\").replace('"', '\\"')
    return f'{field[0]}="{escaped}"'
