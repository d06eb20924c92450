"""Reading the configuration: environment over file over defaults, and every mistake named in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from mirror.config import Address, ConfigError, Settings, Timeouts, UpstreamSettings, load

Write = Callable[[str], Path]


@pytest.fixture(name="write")
def make_write(tmp_path: Path) -> Write:
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "mirror.yaml"
        path.write_text(text)
        return path

    return write


def problems(path: Path | None, **environ: str) -> list[str]:
    """What is wrong with a configuration, without the folder of its file."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    return [problem.replace(f"{path.parent}/", "") if path else problem for problem in caught.value.problems]


def test_nothing_configured_is_docker_hub_on_loopback() -> None:
    """With no file and no variables there is a complete configuration."""
    settings = load(None, {"PATH": "/bin", "MIRRORS": "1"})

    assert settings == Settings()
    assert str(settings.listen) == "127.0.0.1:5000"
    assert str(settings.admin_listen) == "127.0.0.1:5001"
    assert settings.storage.path == Path("data")
    assert settings.storage.max_size == 20 * 2**30
    assert settings.storage.low_watermark == 0.9
    assert settings.storage.min_free.of(100) == 5
    assert settings.timeouts.try_ == 5
    assert settings.timeouts.min_rate == 8192
    assert settings.abandon_below == 2**20
    assert (settings.shutdown_grace, settings.drain_delay, settings.tag_ttl) == (60, 0, 300)
    assert settings.default_upstream == "docker.io"
    assert settings.log_level == "info"


def test_a_file_sets_every_kind_of_key(write: Write) -> None:
    """Sizes, rates, durations, shares, addresses, maps and lists come out as plain numbers and values."""
    path = write("""
listen: "[::]:5000"
storage: {path: /var/lib/mirror, max_size: 500MB, low_watermark: 80%, min_free: 1GiB}
timeouts:
  try: 250ms
  min_rate: 1MB/s
abandon_below: 0
public_url: https://Corp.example:8443/mirror/
trusted_proxies: [10.0.0.0/8, "::1"]
tag_ttl: 1h30m
upstreams:
  docker.io: {tag_ttls: {"v*": 1d, latest: 1m}, hosts: [registry-1.docker.io, "index.docker.io:443", Hub.corp]}
  registry.corp:5000:
    url: http://127.0.0.1:15001/prefix/
    token_hosts: [Login.corp, login.corp:8443]
    allow_private: true
  "*.pkg.dev":
""")
    settings = load(path, {})

    assert settings.listen == Address("::", 5000)
    assert settings.storage.path == Path("/var/lib/mirror")
    assert settings.storage.max_size == 500_000_000
    assert settings.storage.low_watermark == 0.8
    assert settings.storage.min_free.of(5) == 2**30
    assert settings.timeouts == Timeouts(try_=0.25, min_rate=1_000_000)
    assert settings.tag_ttl == 5400
    assert settings.public_url == "https://corp.example:8443/mirror"
    assert settings.trusted_proxies == (ip_network("10.0.0.0/8"), ip_network("::1/128"))
    assert settings.upstreams["docker.io"].hosts == ("docker.io", "index.docker.io:443", "hub.corp")
    corp = settings.upstreams["registry.corp:5000"]
    assert corp.url == "http://127.0.0.1:15001/prefix"
    assert corp.token_hosts == ("login.corp", "login.corp:8443")
    assert corp.allow_private is True
    assert settings.upstreams["*.pkg.dev"] == UpstreamSettings()
    assert settings.upstreams["docker.io"].tag_ttls == {"v*": 86400, "latest": 60}


def test_an_empty_file_and_empty_sections_mean_the_defaults(write: Write) -> None:
    """A section whose keys are all commented out is not a mistake."""
    assert load(write(""), {}) == Settings()
    assert load(write("# nothing\nstorage:\ntimeouts:\nupstreams:\n"), {}) == Settings()


def test_the_environment_wins_over_the_file(write: Write) -> None:
    """Each scalar key has a variable, and what it says counts."""
    path = write("listen: 127.0.0.1:1\nstorage: {max_size: 1GiB, path: /a}\ntimeouts: {try: 1s}\n")
    settings = load(
        path, {"MIRROR_LISTEN": "0.0.0.0:2", "MIRROR_STORAGE__MAX_SIZE": "2GiB", "MIRROR_TIMEOUTS__TRY": "2s"}
    )

    assert settings.listen == Address("0.0.0.0", 2)
    assert settings.storage.max_size == 2 * 2**30
    assert settings.storage.path == Path("/a")
    assert settings.timeouts.try_ == 2


def test_lists_are_json_in_the_environment(write: Write) -> None:
    """They replace the file's list, and a mistake in one names the variable."""
    path = write("trusted_proxies: [10.0.0.0/8]\nupstreams: {quay.io: {hosts: [a.corp]}}\n")
    settings = load(
        path,
        {
            "MIRROR_TRUSTED_PROXIES": '["fd00::/8", "192.0.2.1"]',
            "MIRROR_UPSTREAMS": '{"quay.io": {"hosts": ["b.corp"]}}',
            "MIRROR_PUBLIC_URL": "https://mirror.corp",
        },
    )

    assert settings.trusted_proxies == (ip_network("fd00::/8"), ip_network("192.0.2.1"))
    assert settings.upstreams["quay.io"].hosts == ("b.corp",)
    assert settings.public_url == "https://mirror.corp"
    [problem] = problems(None, MIRROR_TRUSTED_PROXIES="10.0.0.0/8")
    assert problem.startswith("environment variable MIRROR_TRUSTED_PROXIES: trusted_proxies is not valid JSON")
    [problem] = problems(None, MIRROR_TRUSTED_PROXIES='["ten"]')
    assert problem.startswith(
        "environment variable MIRROR_TRUSTED_PROXIES: trusted_proxies.\"0\" is 'ten'; expected an IP"
    )


def test_the_environment_can_add_a_secret_to_an_entry_of_the_file(write: Write) -> None:
    """MIRROR_UPSTREAMS is merged key by key, so that the file need not hold the password."""
    path = write("upstreams:\n  docker.io: {username: ci, tag_ttl: 1m}\n  quay.io: {tag_ttl: 2m}\n")
    upstreams = load(path, {"MIRROR_UPSTREAMS": '{"docker.io": {"password": "planted", "tag_ttl": "3m"}}'}).upstreams

    hub = upstreams["docker.io"]
    assert hub.password is not None
    assert (hub.username, hub.password.get_secret_value(), hub.tag_ttl) == ("ci", "planted", 180)
    assert upstreams["quay.io"].tag_ttl == 120


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_may_be_called_by_any_of_its_names(write: Write, name: str) -> None:
    """Its three names are one entry, as default upstream too."""
    settings = load(write(f"default_upstream: {name}\nupstreams: {{{name}: {{tag_ttl: 1m}}}}"), {})

    assert settings.default_upstream == "docker.io"
    assert settings.upstreams["docker.io"].tag_ttl == 60


def test_what_kubernetes_injects_for_a_service_named_mirror_is_ignored() -> None:
    """Service links must not keep a pod from starting."""
    links = {
        "MIRROR_SERVICE_HOST": "10.96.0.7",
        "MIRROR_SERVICE_PORT": "5000",
        "MIRROR_SERVICE_PORT_REGISTRY": "5000",
        "MIRROR_PORT": "tcp://10.96.0.7:5000",
        "MIRROR_PORT_5000_TCP": "tcp://10.96.0.7:5000",
        "MIRROR_PORT_5000_TCP_PROTO": "tcp",
        "MIRROR_PORT_5000_TCP_PORT": "5000",
        "MIRROR_PORT_5000_TCP_ADDR": "10.96.0.7",
        "MIRROR_PORT_53_UDP_ADDR": "10.96.0.7",
    }
    assert load(None, links) == Settings()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MIRROR_LISTN", "did you mean MIRROR_LISTEN?"),
        ("MIRROR_MAX_SIZE", "did you mean MIRROR_STORAGE__MAX_SIZE?"),
        ("MIRROR_STORAGE", "did you mean MIRROR_STORAGE__"),
        ("MIRROR_listen", "expected"),
        ("MIRROR_TIMEOUTS__TRY_", "did you mean MIRROR_TIMEOUTS__TRY?"),
        ("MIRROR_PORT", "expected"),
        ("MIRROR_CONFIG", "expected"),
    ],
)
def test_unknown_variables_are_mistakes_whose_value_stays_unseen(name: str, hint: str) -> None:
    """A typing error in a variable is found at start, not by wondering why it does nothing."""
    [problem] = problems(None, **{name: "5000"})

    assert problem.startswith(f"environment variable {name}: is not a setting; ")
    assert hint in problem
    assert "5000" not in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("listen: 5000", "mirror.yaml:1: listen is 5000; expected an address as host:port"),
        ("listen:", "mirror.yaml:1: listen is null; expected an address"),
        ("listen: localhost:70000", "listen is 'localhost:70000'; expected an address"),
        ("listen: a b:5000", "listen is 'a b:5000'; expected an address"),
        ("listen: {}", "listen is a mapping; expected an address"),
        ("\nlistn: x", "mirror.yaml:2: listn is not a key; did you mean listen?"),
        ("zzz: x", "zzz is not a key; expected one of listen, admin_listen, workers"),
        ("storage: {max_size: 20Gb/s}", "storage.max_size is '20Gb/s'; expected a size such as 20GiB"),
        ("storage: {max_size: 0}", "storage.max_size is 0; expected a size above 0"),
        ("storage: {max_size: true}", "storage.max_size is true; expected a size"),
        ("storage: {path: ''}", "storage.path is ''; expected a path"),
        ("storage: {path: 7}", "storage.path is 7; expected a path"),
        ("storage: {low_watermark: 90}", "storage.low_watermark is 90; expected a share such as 90%"),
        ("storage: {low_watermark: 0%}", "storage.low_watermark is '0%'; expected a share above 0"),
        ("storage: ./data", "storage is a single value; expected a mapping of keys"),
        ("storage: [a]", "storage is a list; expected a mapping of keys"),
        ("storage:\n  maxsize: 1", "mirror.yaml:2: storage.maxsize is not a key; did you mean max_size?"),
        ("timeouts: {try: 5}", "timeouts.try is 5; expected a duration such as 500ms, 30s"),
        ("timeouts: {try_: 5s}", "timeouts.try_ is not a key; did you mean try?"),
        ("timeouts: {try: 0s}", "timeouts.try is '0s'; expected a duration above 0"),
        ("timeouts: {min_rate: 8192}", "timeouts.min_rate is 8192; expected a rate such as 8KiB/s"),
        ("timeouts: {first_byte: 1s}", "timeouts.stale_after is 2s; expected at most first_byte, which is 1s"),
        ("tag_ttl: 300", "tag_ttl is 300; expected a duration such as 500ms, 30s, 5m, 1h30m or 7d; a bare number"),
        ("log_level: INFO", "log_level is 'INFO'; expected 'debug', 'info', 'warning' or 'error'"),
        ("default_upstream: corp.example", "default_upstream is 'corp.example'; expected a registry in upstreams or"),
        ("default_upstream: '*.gcr.io'", "default_upstream is '*.gcr.io'; expected a registry's name as host"),
        ("admin_listen: 127.0.0.1:5000", "admin_listen is 127.0.0.1:5000, taken by listen; expected another port"),
        ("listen: 0.0.0.0:5001", "admin_listen is 127.0.0.1:5001, taken by listen"),
        ("upstreams: docker.io", "upstreams is a single value; expected a mapping"),
        ("upstreams: {Quay.io: {}}", 'upstreams."Quay.io" is not a valid name; expected a registry\'s name in lower'),
        ("upstreams: {https://quay.io: {}}", 'upstreams."https://quay.io" is not a valid name; expected a registry'),
        ("upstreams: {'*.*': {}}", 'upstreams."*.*" is not a valid name; expected a pattern with at least one label'),
        ("upstreams: {docker.io: {}, index.docker.io: {}}", "upstreams names Docker Hub more than once; expected"),
        ("upstreams: {'*.corp': {url: http://a}}", "upstreams gives one url to the many registries of *.corp"),
        ("upstreams: {a.b: {insecure: yes}}", "upstreams.\"a.b\".insecure is 'yes'; expected true or false"),
        ("upstreams: {a.b: {token_hosts: x.y}}", "upstreams.\"a.b\".token_hosts is 'x.y'; expected a list"),
        ("upstreams: {a.b: {token_hosts: [x/y]}}", 'upstreams."a.b".token_hosts."0" is \'x/y\'; expected a registry'),
        ("upstreams: {a.b: {tag_ttls: {v*: 5}}}", 'upstreams."a.b".tag_ttls.v* is 5; expected a duration'),
        ("upstreams: {a.b: {username: 12}}", 'upstreams."a.b".username is 12; expected text; put quotes around it'),
        ("upstreams: {a.b: {username: a:b}}", "upstreams.\"a.b\".username is 'a:***'; expected a user name, not empty"),
        ("upstreams: {a.b: {url: ftp://x}}", "upstreams.\"a.b\".url is 'ftp://x'; expected an http:// or https:// URL"),
        ("upstreams: {a.b: {url: https://}}", "url is 'https://'; expected an http:// or https:// URL"),
        ("upstreams: {a.b: {url: 'https://x:port'}}", "url is 'https://x:port'; expected an http:// or https:// URL"),
        ("upstreams: {a.b: {url: https://x/v2/}}", "url is 'https://x/v2/'; expected a URL without the final /v2"),
        ("public_url: mirror.corp", "public_url is 'mirror.corp'; expected an http:// or https:// URL with a host"),
        ("public_url: ftp://x", "public_url is 'ftp://x'; expected an http:// or https:// URL with a host"),
        ("public_url: https://a:b@x", "public_url is '***@x'; expected a URL without credentials"),
        ("public_url: https://x/?a=b", "public_url is 'https://x/?***'; expected a URL without a query or fragment"),
        ("public_url: https://x/v2", "public_url is 'https://x/v2'; expected a URL without the final /v2"),
        ("public_url: https://x/v2/y", "public_url is 'https://x/v2/y'; expected a URL whose path is a plain path"),
        ("public_url: https://x/%41", "public_url is 'https://x/%41'; expected a URL whose path is a plain path"),
        ("trusted_proxies: 10.0.0.0/8", "trusted_proxies is '10.0.0.0/8'; expected a list"),
        ("trusted_proxies: [10.0.0.0/8, ten]", "trusted_proxies.\"1\" is 'ten'; expected an IP network such as"),
        ("trusted_proxies: [10.1.0.0/8]", "trusted_proxies.\"0\" is '10.1.0.0/8'; expected an IP network such as "
         "10.0.0.0/8, or an address; the network of that address is 10.0.0.0/8"),
        ("upstreams: {a.b: {hosts: m.corp}}", "upstreams.\"a.b\".hosts is 'm.corp'; expected a list"),
        ("upstreams: {a.b: {hosts: [http://m]}}", 'upstreams."a.b".hosts."0" is \'http://m\'; expected a registry'),
        ("upstreams: {'*.corp': {hosts: [m.corp]}}", "upstreams gives hosts to the many registries of *.corp"),
        ("upstreams: {a.b: {hosts: [m]}, c.d: {hosts: [m]}}", "upstreams.\"c.d\".hosts has 'm', which "
         'upstreams."a.b".hosts has too; expected it in one of them'),
        ("upstreams: {a.b: {hosts: [m:1, M:1]}}", "upstreams.\"a.b\".hosts has 'm:1' more than once; expected it once"),
        ("upstreams: {a.b: {hosts: [index.docker.io]}}", "upstreams.\"a.b\".hosts has 'docker.io', the name of another "
         "registry; expected names of the mirror"),
        ("upstreams: {a.b: {hosts: [index.docker.io:80]}}", "hosts has 'index.docker.io:80', the name of another"),
        ("upstreams: {a.b: {hosts: [c.d]}, c.d: {}}", "hosts has 'c.d', the name of another registry; expected names"),
        ("upstreams: {a.b: {hosts: [quay.io]}}", "hosts has 'quay.io', the name of another registry; expected names"),
        ("upstreams: {a.b: {username: x}}", 'upstreams."a.b" has a username alone; expected also password_file or'),
        (
            "upstreams: {a.b: {stale_if_error: 1m, stale_while_revalidate: 2m}}",
            'upstreams."a.b" has stale_while_revalidate above stale_if_error',
        ),
        ("upstreams: {a.b: {username: x, password: y, docker_config: /nowhere}}", 'upstreams."a.b" has both '
         "docker_config and username or password; expected one of them"),
        ("upstreams: {a.b: {docker_config: /nowhere}}", "docker_config is '/nowhere', which cannot be read (No such"),
        ("upstreams: {a.b: {ca_file: /nowhere}}", "ca_file is '/nowhere', which cannot be read (No such file"),
        ("upstreams: {a.b: {ca_file: /dev}}", "ca_file is '/dev', which is not a file; expected a readable file"),
    ],
)  # fmt: skip
def test_each_mistake_names_file_key_value_and_what_was_expected(write: Write, text: str, expected: str) -> None:
    """One line says all that an operator needs to mend it."""
    [problem] = problems(write(text))

    assert problem.startswith("mirror.yaml")
    assert expected in problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("storage: {}\nstorage: {}", "mirror.yaml:2: storage is there twice; expected one"),
        ("upstreams:\n  a.b: {}\n  a.b: {}", 'mirror.yaml:3: upstreams."a.b" is there twice'),
        ("tag_ttl: !!python/name:os.system 5m", "mirror.yaml:1: tag_ttl has a tag; expected a plain value"),
        ("[a]: b", "mirror.yaml:1: the file has a list or mapping as a key; expected text"),
        ("- a", "mirror.yaml: holds a list at the top; expected a mapping of keys"),
        ("text", "mirror.yaml: holds a single value at the top; expected a mapping of keys"),
        ("tag_ttl: 5m\nlisten: [", "mirror.yaml:2:10: is not valid YAML"),
        ("a: b: c", "mirror.yaml:1:5: is not valid YAML: mapping values are not allowed here"),
        ("tag_ttl: 5m\n\tlisten: x", "mirror.yaml:2:1: is not valid YAML"),
        ("tag_ttl: 5m\n---\nlisten: x", "mirror.yaml:2:1: is not valid YAML"),
        ("tag_ttl: \x07", "mirror.yaml:1: holds a control character"),
        ("[" * 5000, "mirror.yaml: is nested too deeply"),
        ("upstreams: &a {quay.io: *a}", "is nested too deeply, or holds itself"),
        ("#" * (2 << 20), "mirror.yaml: is larger than 1MiB"),
    ],
)
def test_what_is_no_sound_yaml_is_said_with_its_place(write: Write, text: str, expected: str) -> None:
    """A file that YAML, or we, cannot accept is one line with file, line and column, never a traceback."""
    assert any(expected in problem for problem in problems(write(text)))


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    """A missing file, a directory and a file that is not text are told apart."""
    assert problems(tmp_path / "none.yaml") == [
        "none.yaml: cannot be read (No such file or directory); expected a YAML file"
    ]
    (tmp_path / "folder").mkdir()
    assert problems(tmp_path / "folder") == ["folder: cannot be read (Is a directory); expected a YAML file"]
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"tag_ttl: \xff\xfe")
    assert problems(binary) == ["binary.yaml: is not UTF-8 text (byte 9); expected YAML"]


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "0123", "1:30", "2001-01-01", "0x1f", "1_000", "1e3", ".inf", "=", "y"]
)
def test_plain_text_stays_the_text_it_is(write: Write, text: str) -> None:
    """What YAML 1.1 would turn into a boolean, an octal number, base 60 or a date is text here."""
    settings = load(write(f"upstreams: {{quay.io: {{username: ci, password: {text}}}}}"), {})

    assert settings.upstreams["quay.io"].password is not None
    assert settings.upstreams["quay.io"].password.get_secret_value() == text


def test_all_mistakes_are_said_at_once(write: Write) -> None:
    """An operator mends a file in one go; each line says where: in the file or in which variable."""
    path = write("listen: 5000\ntag_ttl: 5\nlog_level: loud\nupstreams: {a.b: {username: x}}\n")
    found = problems(path, MIRROR_LISTEN="x", MIRROR_NOPE="x", MIRROR_STORAGE__MAX_SIZE="big")

    assert len(found) == 6
    assert "environment variable MIRROR_LISTEN: listen is 'x'; expected an address" in "\n".join(found)
    assert "environment variable MIRROR_NOPE: is not a setting" in "\n".join(found)
    assert "environment variable MIRROR_STORAGE__MAX_SIZE: storage.max_size is 'big'" in "\n".join(found)
    assert "mirror.yaml:2: tag_ttl" in "\n".join(found)
    assert "mirror.yaml:3: log_level" in "\n".join(found)
    assert "mirror.yaml:4: upstreams" in "\n".join(found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{'a': 1}", "upstreams is not valid JSON (Expecting property name enclosed in double quotes at character 2)"),
        ('{"a.b": {}, "a.b": {}}', "upstreams is not valid JSON (a key is there twice)"),
        ("[" * 100_000, "upstreams is not valid JSON (it is nested too deeply"),
        ("[]", "upstreams is a list; expected a mapping"),
        ('"planted"', "upstreams is a single value; expected a mapping"),
        ('{"a.b": {"tag_ttl": 5}}', 'upstreams."a.b".tag_ttl is 5; expected a duration'),
        ('{"a.b": "planted"}', 'upstreams."a.b" is a single value; expected a mapping of keys'),
    ],
)
def test_mistakes_in_the_json_of_upstreams_name_the_variable(value: str, expected: str) -> None:
    """What is wrong inside MIRROR_UPSTREAMS is found like in a file, and its text stays unseen."""
    [problem] = problems(None, MIRROR_UPSTREAMS=value)

    assert problem.startswith("environment variable MIRROR_UPSTREAMS: ")
    assert expected in problem
    assert "planted" not in problem


def test_a_section_that_the_file_spoils_is_not_hidden_by_the_environment(write: Write) -> None:
    """A variable for one key of a section does not cover up that the file holds no section there."""
    [problem] = problems(write("storage: ./data"), MIRROR_STORAGE__MAX_SIZE="1GiB")

    assert problem == "mirror.yaml:1: storage is a single value; expected a mapping of keys"


def test_files_that_the_configuration_names_must_be_readable(write: Write, tmp_path: Path) -> None:
    """A missing password file and a CA file without certificates are found at start, not at the first pull."""
    secret, text = tmp_path / "secret", tmp_path / "text"
    secret.write_text("planted")
    text.write_text("no certificate")
    path = write(f"upstreams: {{a.b: {{username: ci, password_file: {secret}, ca_file: {text}}}}}")

    assert problems(path) == [
        f'mirror.yaml:1: upstreams."a.b".ca_file is {str(text).removeprefix(f"{tmp_path}/")!r}, '
        "which holds no certificate; expected a PEM file"
    ] or problems(path)[0].endswith("which holds no certificate; expected a PEM file")
    secret.unlink()
    assert any("password_file" in problem and "No such file" in problem for problem in problems(path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "which is not Docker's config.json; expected what `docker login` writes"),
        (
            '{"auths": {"a.b": {"auth": "planted"}}}',
            "which has an auth for a.b that is not the base64",
        ),
        ('{"auths": {"c.d": {"auth": "Y2k6eA=="}}}', "which has no login for a.b; expected it in auths"),
        ('{"credHelpers": {"a.b": "pass"}}', "which leaves the login to docker-credential-pass; expected it in auths"),
    ],
)
def test_a_login_of_docker_must_be_there(write: Write, tmp_path: Path, content: str, problem: str) -> None:
    """Found at the start, not at the first pull."""
    file = tmp_path / "config.json"
    file.write_text(content)

    [said] = problems(write(f"upstreams: {{a.b: {{docker_config: {file}}}}}"))

    assert problem in said
    assert "planted" not in said


@pytest.mark.parametrize(
    "text",
    [
        "upstreams: {a.b: {username: x, password: {planted: 1}}}",
        "upstreams: {a.b: {username: x, password: [planted]}}",
        "upstreams: {a.b: {username: x, passwrd: planted}}",
        "upstreams: {a.b: planted}",
        "upstreams: {a.b: {url: 'https://user:planted@host/'}}",
        "upstreams: {a.b: {url: 'https://user:planted%40host/'}}",
        "upstreams: {a.b: {url: 'https://host/?token=planted'}}",
        "upstreams: {'user:planted@host': {}}",
        "default_upstream: user:planted@host",
        "upstreams: {a.b: {username: x, password: *planted}}",
        "upstreams: {a.b: {username: x, password: !planted y}}",
        "upstreams: {a.b: {username: x, password: 'planted}}",
        'upstreams: {a.b: {username: x, password: "planted\\zplanted"}}',
        "upstreams: {a.b: {password: planted}}",
        "upstreams: {a.b: {username: x, password: planted, password_file: /dev/null}}",
        "password: planted",
    ],
)
def test_no_message_shows_a_secret(write: Write, text: str) -> None:
    """A secret in the wrong place, of the wrong kind, or in broken YAML is not printed into someone's log."""
    found = problems(write(text))

    assert found
    assert "planted" not in "\n".join(found)


@pytest.mark.parametrize("number", [12345, 12.5, True])
def test_a_password_of_the_wrong_kind_is_refused_unseen(number: object) -> None:
    """A number as password would have lost its leading zeros; the message does not show it."""
    [problem] = problems(None, MIRROR_UPSTREAMS=json.dumps({"a.b": {"username": "x", "password": number}}))

    assert problem.endswith('upstreams."a.b".password is ******; expected text; put quotes around it')


def test_secrets_are_masked_in_every_form_of_the_settings() -> None:
    """Neither repr nor str nor a dump of the settings holds a password."""
    settings = load(None, {"MIRROR_UPSTREAMS": '{"a.b": {"username": "x", "password": "planted"}}'})

    for form in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert "planted" not in form


def test_settings_are_frozen() -> None:
    """Nobody changes the configuration of a running mirror behind its back."""
    settings = Settings(upstreams={"a.b": UpstreamSettings()})

    with pytest.raises(ValidationError):
        settings.tag_ttl = 1
    with pytest.raises(TypeError):
        settings.upstreams["x"] = UpstreamSettings()  # type: ignore[index]  # this is what must fail


def test_code_gives_plain_numbers() -> None:
    """Tests and callers write seconds and bytes; only what an operator writes needs units."""
    assert Timeouts(first_byte=0.6, min_rate=10).first_byte == 0.6
    with pytest.raises(ValidationError):
        Timeouts(first_byte=-1)
    with pytest.raises(ValidationError):
        UpstreamSettings(username="x")
