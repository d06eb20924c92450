"""The mirror as a process: how it ends, and that two never share a data directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.mirrors import MirrorProcess, serve
from tests.e2e.processes import free_port

pytestmark = pytest.mark.e2e


def test_sigterm_ends_an_idle_mirror_with_0(mirror: MirrorProcess) -> None:
    """Asked to end while it has nothing to do, the mirror exits 0."""
    mirror.start({})

    mirror.stop()


def test_second_process_on_the_same_data_is_refused(mirror: MirrorProcess, tmp_path: Path) -> None:
    """A second mirror on one data directory exits 1 at once and names the process that holds it."""
    mirror.start({})
    config = json.loads(mirror.configure({}).read_text())
    config |= {"listen": f"127.0.0.1:{free_port()}", "admin_listen": f"127.0.0.1:{free_port()}"}
    second_config, second_log = tmp_path / "second.yaml", tmp_path / "second.log"
    second_config.write_text(json.dumps(config))

    second = serve(second_config, second_log)

    try:
        assert second.wait() == 1
    finally:
        second.stop()
    assert str(mirror.pid) in second_log.read_text()
