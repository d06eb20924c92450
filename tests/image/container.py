"""An image run by runc as an orchestrator that allows next to nothing would: what it says of itself, and no more."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.e2e import cgroups
from tests.e2e.processes import Process, remove_tree
from tests.e2e.programs import environment, run

USER = 65532
_numbers = itertools.count()


class Unpacked:
    """An image's files below `root`, and its configuration."""

    def __init__(self, layout: Path, root: Path) -> None:
        blobs = layout / "blobs"

        def document(descriptor: Mapping[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = json.loads((blobs / descriptor["digest"].replace(":", "/")).read_bytes())
            return found

        manifest = document(json.loads((layout / "index.json").read_bytes())["manifests"][0])
        self.root = root
        self.config: dict[str, Any] = document(manifest["config"])["config"]
        self.packed = sum(layer["size"] for layer in manifest["layers"])
        """Bytes that a pull of it takes."""
        root.mkdir()
        for layer in manifest["layers"]:
            # No layer takes away what one before it has brought: the last stage starts from scratch.
            archive = blobs / layer["digest"].replace(":", "/")
            subprocess.run(["tar", "--extract", f"--file={archive}", f"--directory={root}"], check=True)


class Container:
    """One container: its root is read-only, its user has no capability, and the network is this machine's.

    `data` is mounted at the image's only volume, `config`, if given, in the place of the directory that it has.
    """

    def __init__(
        self, image: Unpacked, home: Path, *, config: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        number = next(_numbers)
        self.log = home / f"container-{number}.log"
        self.data = home / "data"
        self._image = image
        self._home = home
        self._name = f"mirror-{number}"
        self._bundle = home / self._name
        self._group = f"{cgroups.PARENT}-image-{number}"
        self._variables = [*image.config["Env"], *(f"{key}={value}" for key, value in (env or {}).items())]
        self._runc = ("runc", "--root", str(home / "runc"))
        self._bundle.mkdir()
        self.data.mkdir(mode=0o700, exist_ok=True)
        subprocess.run(["chown", f"{USER}:{USER}", self.data], check=True)
        run(*self._runc, "spec", "--bundle", self._bundle, home=home)
        file = self._bundle / "config.json"
        file.write_text(json.dumps(self._restricted(json.loads(file.read_bytes()), config)))
        self._process = Process(
            [*self._runc, "run", "--bundle", self._bundle, self._name], log=self.log, env=environment(home)
        )

    def _restricted(self, spec: dict[str, Any], config: Path | None) -> dict[str, Any]:
        """runc's own example of a container, with less allowed."""
        (volume,) = self._image.config["Volumes"]
        user, _, group = self._image.config["User"].partition(":")
        spec["process"] |= {
            "terminal": False,
            "user": {"uid": int(user), "gid": int(group)},
            "args": [*self._image.config["Entrypoint"], *self._image.config["Cmd"]],
            "env": self._variables,
            "cwd": self._image.config["WorkingDir"],
            "capabilities": {},
            "noNewPrivileges": True,
        }
        spec["root"] = {"path": str(self._image.root), "readonly": True}
        spec["mounts"].append(_bind(self.data, volume, "rw"))
        if config is not None:
            spec["mounts"].append(_bind(config, "/etc/mirror", "ro"))
        spec["linux"]["namespaces"] = [each for each in spec["linux"]["namespaces"] if each["type"] != "network"]
        spec["linux"]["cgroupsPath"] = self._group
        return spec

    def is_healthy(self) -> bool:
        """What the image's own check says. Raises RuntimeError, with the log's end, once the container has ended."""
        check = self._image.config["Healthcheck"]["Test"]
        assert check[0] == "CMD", "the check needs a shell"
        self._process.wait_until(lambda: True)
        # It becomes process 1 of none, as an orchestrator's check does not either.
        return self.execute(*check[1:]).returncode == 0

    def execute(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Runs a program in there, as the image's user, and returns how it ended."""
        variables = [f"--env={variable}" for variable in self._variables]
        return subprocess.run(
            [*self._runc, "exec", f"--user={self._image.config['User']}", *variables, self._name, *argv],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def ask_to_stop(self) -> None:
        """Sends the signal that the image says."""
        name = self._image.config["StopSignal"]
        assert signal.Signals[name], name
        run(*self._runc, "kill", self._name, name, home=self._home)

    def wait(self, *, seconds: float = 60) -> int:
        """The exit code, once it has ended. Raises TimeoutExpired."""
        return self._process.wait(seconds=seconds)

    def remove(self) -> None:
        """Ends it whatever it does, and removes what runc knows of it."""
        if self._process.exit_code is None:
            subprocess.run([*self._runc, "delete", "--force", self._name], check=True, capture_output=True)
        self._process.stop()
        cgroups.remove(self._group)
        remove_tree(self._bundle)


def _bind(source: Path, target: str, access: str) -> dict[str, Any]:
    options = ["bind", access, "nosuid", "nodev", "noexec"]
    return {"type": "bind", "source": str(source), "destination": target, "options": options}
