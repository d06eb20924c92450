"""What one process hands to another as settings is what the other one has."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from mirror.config import Address, Amount, Settings, Storage, Timeouts, Tls, UpstreamSettings, pack, unpack

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn", "Co"]), min_size=1, max_size=12)
durations = st.integers(1, 10**9).map(lambda milliseconds: milliseconds / 1000)
paths = st.sampled_from([Path("data"), Path("/var/lib/mirror"), Path("../x"), Path(os.fsdecode(b"/\xff"))])
upstreams = st.builds(
    UpstreamSettings,
    username=texts.map(lambda text: text.replace(":", "x")),
    password=texts.map(SecretStr),
    tag_ttl=st.none() | durations,
    tag_ttls=st.dictionaries(texts, durations, max_size=3),
    negative_ttl=durations,
    insecure=st.booleans(),
    ca_file=st.none() | paths,
    hosts=st.sampled_from([(), ("mirror.corp", "mirror.corp:5001")]),
    url=st.none() | st.sampled_from(["http://127.0.0.1:1", "https://x.y/prefix"]),
)
settings = st.builds(
    Settings,
    listen=st.sampled_from([Address("127.0.0.1", 0), Address("::", 5000)]),
    workers=st.integers(0, 256),
    tls=st.builds(Tls, certificate=paths, key=st.none() | paths),
    public_url=st.sampled_from([None, "https://mirror.corp/path"]),
    trusted_proxies=st.sampled_from([(), (ip_network("10.0.0.0/8"), ip_network("::1"))]),
    storage=st.builds(
        Storage,
        path=paths,
        max_size=st.integers(1, 2**50),
        low_watermark=st.floats(0.01, 1).map(lambda share: round(share, 4)),
        min_free=st.sampled_from([Amount(fraction=0.05), Amount(size=3 << 20)]),
        scrub_rate=st.integers(0, 2**40),
    ),
    timeouts=st.builds(Timeouts, try_=durations, first_byte=durations, min_rate=st.integers(0, 2**30)),
    shutdown_grace=durations,
    upstreams=st.dictionaries(st.sampled_from(["docker.io", "a.b:5000", "*.corp"]), st.just(UpstreamSettings()))
    | upstreams.map(lambda one: {"a.b:5000": one}),
)


@given(settings)
def test_settings_arrive_as_they_were(settings: Settings) -> None:
    """Every value, of each kind, and passwords too."""
    assert unpack(pack(settings)) == settings
