"""containerd: its hosts files, beside what they had, and whether it reads them at all."""

from __future__ import annotations

import tomllib

import pytest

from mirror.nodes import RUNTIMES, Outcome, Unusable, Wanted, apply, restore
from tests.nodes.conftest import Node

CONFIG, CERTS = "/etc/containerd/config.toml", "/etc/containerd/certs.d"
DEFAULT = f"{CERTS}/_default/hosts.toml"
MIRROR = "http://mirror.test:5000"
WANTED = Wanted(MIRROR)
CONTAINERD = RUNTIMES["containerd"]
TABLE_2, TABLE_3 = 'plugins."io.containerd.grpc.v1.cri".registry', "plugins.'io.containerd.cri.v1.images'.registry"


def configure(node: Node, wanted: Wanted = WANTED) -> Outcome:
    """`apply`."""
    return apply(CONTAINERD, wanted, node.root)


def test_for_all_registries(node: Node) -> None:
    """One file, without a server: each registry itself is asked after the mirror."""
    configure(node)

    assert tomllib.loads(node.text(DEFAULT)) == {
        "host": {MIRROR: {"capabilities": ["pull", "resolve"], "dial_timeout": "1s"}}
    }


def test_for_some_registries(node: Node) -> None:
    """A file for each, with the registry as the server to fall back to."""
    configure(node, Wanted(MIRROR, ("docker.io", "reg.test:5000")))

    assert tomllib.loads(node.text(f"{CERTS}/docker.io/hosts.toml"))["server"] == "https://registry-1.docker.io"
    assert tomllib.loads(node.text(f"{CERTS}/reg.test:5000/hosts.toml"))["server"] == "https://reg.test:5000"
    assert not node.root.exists(DEFAULT)


def test_with_an_authority(node: Node) -> None:
    """Beside the file that names it."""
    configure(node, Wanted("https://mirror.test", ca="a certificate"))

    assert tomllib.loads(node.text(DEFAULT))["host"]["https://mirror.test"]["ca"] == "mirror-ca.pem"
    assert node.text(f"{CERTS}/_default/mirror-ca.pem") == "a certificate"


@pytest.mark.parametrize(
    "found",
    [
        'server = "https://other.test" # theirs\n\n[host."https://other.test"]\n  capabilities = ["pull"]\n',
        'server = "https://other.test"',
        '  [host."https://a.test"]\n  [host."https://b.test"]\n    skip_verify = true\n',
        "",
        "# nothing yet\n",
    ],
)
def test_beside_what_a_file_had(node: Node, found: str) -> None:
    """The mirror is asked first; the rest is as it was, comments included."""
    node.put(DEFAULT, found)
    configure(node)

    old, new = tomllib.loads(found), tomllib.loads(node.text(DEFAULT))
    assert list(new["host"]) == [MIRROR, *old.get("host", {})]
    assert {**new, "host": 0} == {**old, "host": 0}
    assert all(line in node.text(DEFAULT) for line in found.splitlines())


def test_a_mirror_that_is_named_already(node: Node) -> None:
    """Somebody has set it up in his own way."""
    node.put(DEFAULT, f'[host."{MIRROR}"]\n')
    before = node.tree()
    outcome = configure(node)

    assert outcome.changed == []
    assert any(f"{DEFAULT} names {MIRROR} already" in advice for advice in outcome.advice)
    assert node.tree() == before


@pytest.mark.parametrize(
    "found", ["host = 1", 'host = {"https://a.test" = {}}', 'host."https://a.test".ca = "x"', "a = ["]
)
def test_what_nothing_can_be_put_in_front_of(node: Node, found: str) -> None:
    """It says so, and touches nothing."""
    node.put(DEFAULT, found)
    before = node.tree()

    with pytest.raises(Unusable, match=DEFAULT):
        configure(node)
    assert node.tree() == before


def test_registries_with_a_directory_of_their_own_are_told_of(node: Node) -> None:
    """The file for all does not touch them."""
    node.put(f"{CERTS}/reg.test/hosts.toml", 'server = "https://reg.test"')

    assert any("reg.test" in advice for advice in configure(node).advice)


@pytest.mark.parametrize(
    ("config", "top"),
    [
        (f'version = 2\n[{TABLE_2}]\nconfig_path = "{CERTS}"\n', CERTS),
        (f'version = 3\n[{TABLE_3}]\nconfig_path = "/etc/elsewhere"\n', "/etc/elsewhere"),
        (f'version = 4\n[{TABLE_3}]\nconfig_path = "{CERTS}:/etc/docker/certs.d"\n', CERTS),
        (f'version = 3\nimports = ["conf.d/*.toml"]\n[{TABLE_3}]\nconfig_path = "/etc/first"\n', "/etc/second"),
    ],
)
def test_where_it_reads(node: Node, config: str, top: str) -> None:
    """In the first directory of `config_path`, wherever that is set; nothing is left to say then."""
    node.put(CONFIG, config)
    node.put("/etc/containerd/conf.d/more.toml", f'version = 3\n[{TABLE_3}]\nconfig_path = "/etc/second"\n')

    outcome = configure(node)

    assert outcome.changed == [f"{top}/_default/hosts.toml"]
    assert outcome.advice == []


SILENT = [
    None,
    "version = 2\n",
    f"version = 2\n[{TABLE_2}]\n",
    f'version = 2\n  [{TABLE_2}]\n    config_path = "" # none\n\n    [{TABLE_2}.headers]\n      a = ["b"]\n',
    f"version = 3 # theirs\n\n[{TABLE_3}] # here\n  headers = {{}}\n\n[debug]\n  level = 'info'",
    "version = 4",
]


@pytest.mark.parametrize("config", SILENT)
def test_the_lines_that_are_missing_are_told(node: Node, config: str | None) -> None:
    """Exactly those, and the file is left alone."""
    if config is not None:
        node.put(CONFIG, config)
    (advice,) = configure(node).advice

    lines = tomllib.loads(advice.partition("\n\n")[2])
    plugin = next(iter(lines["plugins"].values()))
    assert plugin == {"registry": {"config_path": CERTS}}
    assert (node.text(CONFIG) if config is not None else None) == config


@pytest.mark.parametrize("config", SILENT)
def test_they_are_added_when_asked(node: Node, config: str | None) -> None:
    """Nothing else in the file changes; it comes back as it was; once more changes nothing."""
    if config is not None:
        node.put(CONFIG, config)
    before = node.tree()
    wanted = Wanted(MIRROR, add_config_path=True)
    outcome = configure(node, wanted)
    old, new = tomllib.loads(config or "version = 2"), tomllib.loads(node.text(CONFIG))

    assert CONFIG in outcome.changed
    assert any("systemctl restart containerd" in advice for advice in outcome.advice)
    plugin = next(iter(new["plugins"]))
    assert new["plugins"][plugin]["registry"].pop("config_path") == CERTS
    old.setdefault("plugins", {}).setdefault(plugin, {}).setdefault("registry", {}).pop("config_path", None)
    assert new == old
    assert configure(node, wanted).changed == []
    restore(CONTAINERD, node.root)
    assert node.tree() == before


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("a = [", "no TOML"),
        ("version = 'two'", "version"),
        (f"version = 2\n[{TABLE_2}]\nconfig_path = 7\n", "config_path"),
        (f'version = 2\n[{TABLE_2}]\nconfig_path = "relative"\n', "config_path"),
        ("version = 2\nimports = 'one'\n", "imports"),
        (f"version = 2\n[{TABLE_2}.mirrors.'docker.io']\nendpoint = ['https://a.test']\n", r"registry\.mirrors"),
        ("version = 2\nplugins = {}\n", "by hand"),
        ("[plugins.cri]\n", "version 1"),
    ],
)
def test_a_configuration_of_no_use(node: Node, config: str, why: str) -> None:
    """It is named, and nothing is touched."""
    node.put(CONFIG, config)
    before = node.tree()

    with pytest.raises(Unusable, match=why):
        configure(node, Wanted(MIRROR, add_config_path=True))
    assert node.tree() == before
