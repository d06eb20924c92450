"""What `deploy/` gives to those who run the mirror: files that fit each other, the image, and the command line."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from mirror.cli import main
from mirror.config import Settings, load
from mirror.config.units import parse_duration

TOP = Path(__file__).parents[1]
DEPLOY = TOP / "deploy"
UNIT = DEPLOY / "mirror.service"
EXPOSURE = 2.0
"""How much systemd may find left open, of 10; what it counts are IP addresses and the network, which serve."""
OFFLINE = 250
"""The first systemd that measures a unit without running it."""


def unit() -> dict[str, list[str]]:
    """The settings of the unit's [Service], each with all of its lines."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def compose() -> dict[str, Any]:
    """The service that the compose file has."""
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(document["volumes"]) == {"data"}
    service: dict[str, Any] = document["services"]["mirror"]
    return service


def dockerfile(instruction: str) -> list[str]:
    """What the Dockerfile's last stage says for an instruction."""
    stage = (TOP / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    return re.findall(rf"^{instruction} (.+)$", stage, re.MULTILINE)


@pytest.fixture(name="settings")
def baked_in() -> Settings:
    """The configuration that the image has."""
    return load(DEPLOY / "mirror.yaml", {})


def seconds_to_end(settings: Settings) -> float:
    """How long an orderly end takes at most."""
    return settings.drain_delay + settings.shutdown_grace


def test_the_images_configuration_fits_the_image(settings: Settings) -> None:
    """It is valid, listens where the image says that it does, and keeps its cache in the image's volume."""
    ports = [f"{address.port}" for address in (settings.listen, settings.admin_listen)]

    assert dockerfile("EXPOSE") == [" ".join(ports)]
    assert dockerfile("VOLUME") == [str(settings.storage.path)]
    assert {settings.listen.host, settings.admin_listen.host} == {"0.0.0.0"}


def test_compose_fits_the_image(settings: Settings) -> None:
    """Its ports, its volume and its configuration are the image's; pulls have time to end."""
    service = compose()
    mounts = dict(mount.split(":", 2)[:2] for mount in service["volumes"])

    assert (DEPLOY / service["build"]).resolve() == TOP
    assert service["ports"] == [f"{settings.listen.port}:5000", f"127.0.0.1:{settings.admin_listen.port}:5001"]
    assert mounts["data"] == str(settings.storage.path)
    assert (DEPLOY / "mirror.yaml").samefile(DEPLOY / next(name for name in mounts if name.startswith("./")))
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert parse_duration(service["stop_grace_period"]) > seconds_to_end(settings)


def test_the_units_command_is_one(settings: Settings) -> None:
    """`mirror serve` takes what the unit gives it, and has time for the end that its configuration wants."""
    service = unit()
    (command,), (stop,) = service["ExecStart"], service["TimeoutStopSec"]
    _, name, *arguments = shlex.split(command)
    context = click.Context(main)

    found = main.get_command(context, name)

    assert found is not None
    parsed = found.make_context(name, arguments, parent=context)
    assert parsed.params["file"] == Path("/etc/mirror/mirror.yaml")
    assert float(stop) > seconds_to_end(settings)
    assert settings.storage.path == Path("/var/lib") / service["StateDirectory"][0]


def test_systemd_understands_the_unit_and_finds_little_left_open(tmp_path: Path) -> None:
    """No line is unknown to systemd, and its own measure of what the service could still do is low."""
    if version() < OFFLINE:
        pytest.skip(f"needs systemd-analyze >= {OFFLINE} (Debian: systemd); the test below has what matters most")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/mirror/bin/mirror", "/bin/true"))  # which is there, to be looked at

    verified = analyze("verify", "--man=no", str(copy))
    measured = analyze("security", "--offline=true", f"--threshold={EXPOSURE * 10:.0f}", "--no-pager", str(copy))

    assert verified == ""
    assert "Overall exposure level" in measured


def version() -> int:
    """Which systemd is there; 0 where there is none."""
    if shutil.which("systemd-analyze") is None:
        return 0
    return int(analyze("--version").split()[1])


def analyze(*arguments: str) -> str:
    """What systemd-analyze prints; it has to end with 0."""
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60, env={"LC_ALL": "C"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_unit_leaves_nothing_open_that_the_mirror_does_not_need() -> None:
    """Also where there is no systemd to ask."""
    service = unit()

    assert service["DynamicUser"] == ["yes"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["ProtectSystem"] == ["strict"]
    assert service["SystemCallFilter"] == ["@system-service", "~@privileged"]
    assert service["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    switches = {key for key, value in service.items() if value == ["yes"]}
    assert switches >= {"NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateDevices", "PrivateTmp", "ProtectHome"}
