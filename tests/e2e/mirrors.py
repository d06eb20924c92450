"""The mirror as its users run it: a process with a configuration file."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e.processes import Process, free_port, listens
from tests.samples import total


class MirrorProcess:
    """`mirror serve` on 127.0.0.1:`port`, with its configuration, its data and its log under `home`."""

    def __init__(self, home: Path, port: int) -> None:
        self.log = home / "mirror.log"
        self.data = home / "data"
        self._home = home
        self._port = port
        self.address = f"127.0.0.1:{port}"
        self.url = f"http://{self.address}"
        self._admin_port = free_port()
        self.admin_url = f"http://127.0.0.1:{self._admin_port}"
        self._process: Process | None = None

    def configure(self, upstreams: Mapping[str, Mapping[str, str]], **settings: Any) -> Path:
        """Writes the configuration file for the next start."""
        config = self._home / "mirror.yaml"
        document = {
            "listen": f"127.0.0.1:{self._port}",
            "admin_listen": f"127.0.0.1:{self._admin_port}",
            "storage": {"path": str(self.data)},
            "upstreams": {name: dict(entry) for name, entry in upstreams.items()},
            **settings,
        }
        config.write_text(json.dumps(document))  # JSON is YAML
        return config

    def start(self, upstreams: Mapping[str, Mapping[str, str]], **settings: Any) -> None:
        """Starts it in front of these upstreams and returns when it accepts connections."""
        self._process = serve(self.configure(upstreams, **settings), self.log)
        self._process.wait_until(lambda: listens(self._admin_port))  # it listens there last

    @property
    def pid(self) -> int:
        """The process that was started last."""
        assert self._process is not None, "not started"
        return self._process.pid

    def stop(self) -> None:
        """Asks it to end by SIGTERM; it has to do so with exit code 0."""
        if self._process is not None:
            code = self._process.stop()
            self._process = None
            assert code == 0, f"SIGTERM ended the mirror with {code}"

    def kill(self) -> None:
        """Ends it by SIGKILL, as a crash would."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process = None

    def counted(self, metric: str, **labels: str) -> float:
        """The sum over all samples of `metric` that carry these labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin_port}/metrics", timeout=5) as answer:
            return total(answer.read().decode(), metric, **labels)


def serve(config: Path, log: Path) -> Process:
    """Starts `mirror serve`, whatever becomes of it; this user's own MIRROR_ variables stay outside."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR_")}
    return Process([sys.executable, "-m", "mirror", "serve", "--config", config], log=log, env=env)
