"""The configuration in words: complete, current, and loadable again."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from mirror.config import WELL_KNOWN, Settings, Storage, Timeouts, UpstreamSettings, effective, load, settings_table
from mirror.config.environment import variable
from mirror.config.keys import keys_of, leaves, section_of
from mirror.config.mistakes import SECRET_KEYS

SECTIONS: list[tuple[tuple[str, ...], type[BaseModel]]] = [
    ((), Settings),
    (("storage",), Storage),
    (("timeouts",), Timeouts),
    (("upstreams", "<name>"), UpstreamSettings),
]
KEYS = {
    ".".join((*above, key)): (str(model.__annotations__[name]), field.description or "")
    for above, model in SECTIONS
    for (key, field), name in zip(keys_of(model).items(), model.model_fields, strict=True)
    if section_of(field) is None
}
UNIT_WORDS = {
    "Duration": r"Duration",
    "PositiveDuration": r"[Dd]uration",
    "Size": r"Size",
    "PositiveSize": r"size",
    "Rate": r"bytes a second",
    "PositiveFraction": r"Share",
    "SizeOrShare": r"size, or a percentage",
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_in_the_table_with_its_meaning_and_unit(key: str) -> None:
    """An operator finds each key with a sentence, and a quantity with its unit."""
    kind, description = KEYS[key]

    assert description.endswith(".")
    assert f"| `{key}` |" in settings_table()
    for word, pattern in UNIT_WORDS.items():
        if re.search(rf"\b{word}\b", kind):
            assert re.search(pattern, description), kind


def test_the_table_names_variable_and_default() -> None:
    """Each row is a key, the variable that sets it too, its default with a unit, and its meaning."""
    table = settings_table()

    assert "| `storage.max_size` | `MIRROR_STORAGE__MAX_SIZE` | `20GiB` | Most that" in table
    assert "| `timeouts.try` | `MIRROR_TIMEOUTS__TRY` | `5s` |" in table
    assert "| `storage.path` | `MIRROR_STORAGE__PATH` | `./data` |" in table
    assert "| `upstreams` | `MIRROR_UPSTREAMS` (JSON) |  |" in table
    assert "| `upstreams.<name>.insecure` |  | `false` |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_every_variable_of_the_table_sets_its_key() -> None:
    """Setting each variable to the default that the table names changes nothing, and none is unknown."""
    rows = re.findall(r"\| `[^`]+` \| `(MIRROR_[A-Z_]+)`(?: \(JSON\))? \| (?:`([^`]+)`)? \|", settings_table())

    assert {name for name, _ in rows} == {variable(path) for path, _ in leaves()}
    assert load(None, {name: default for name, default in rows if default}) == Settings()


def test_every_secret_key_is_known_to_the_messages() -> None:
    """A key that holds a secret is one whose value no message shows."""
    assert {key.rpartition(".")[2] for key, (kind, _) in KEYS.items() if "SecretStr" in kind} == SECRET_KEYS


def test_the_effective_configuration_masks_secrets_and_fills_in_what_is_built_in(tmp_path: Path) -> None:
    """check-config shows units and the real url, never a password, and names what needs no entry."""
    upstream = UpstreamSettings(username="ci", password=SecretStr("planted"))
    text = effective(Settings(storage=Storage(max_size=3 << 29), upstreams={"docker.io": upstream}))

    assert "planted" not in text
    assert "password: '**********'" in text
    assert "url: https://registry-1.docker.io" in text
    assert "max_size: 1536MiB" in text
    assert all(name in text for name in WELL_KNOWN)


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=12)
durations = st.integers(0, 10**9).map(lambda milliseconds: milliseconds / 1000)


@given(
    st.builds(
        UpstreamSettings,
        username=texts.map(lambda text: text.replace(":", "x")),
        password=texts.map(SecretStr),
        tag_ttl=st.none() | durations,
        tag_ttls=st.dictionaries(texts, durations, max_size=3),
        negative_ttl=durations,
        insecure=st.booleans(),
        hosts=st.sampled_from([(), ("mirror.corp", "mirror.corp:5001")]),
        url=st.none() | st.sampled_from(["http://127.0.0.1:1", "https://x.y/prefix"]),
    ),
    st.integers(1, 2**50),
    st.floats(0.01, 1).map(lambda share: round(share, 4)),
)
def test_the_effective_configuration_loads_as_the_same_settings(
    tmp_path_factory: pytest.TempPathFactory, upstream: UpstreamSettings, size: int, share: float
) -> None:
    """What check-config prints is a configuration with the same meaning, secrets apart."""
    upstreams = {"a.b:5000": upstream, "*.corp": UpstreamSettings(tag_ttl=1)}
    settings = Settings(
        public_url="https://mirror.corp/path",
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("::1")),
        storage=Storage(max_size=size, low_watermark=share),
        upstreams=upstreams,
    )
    path = tmp_path_factory.mktemp("effective") / "mirror.yaml"
    path.write_text(effective(settings), encoding="utf-8")

    assert effective(load(path, {})) == effective(settings)
