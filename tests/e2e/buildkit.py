"""BuildKit: a daemon that builds a Dockerfile, and buildctl."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import cgroups
from tests.e2e.clients import snippet
from tests.e2e.processes import Process, remove_state
from tests.e2e.programs import environment, need, run


@dataclass(frozen=True, slots=True)
class Built:
    """What a build made: its layers from the base up, and the files of the topmost one."""

    layers: tuple[str, ...]
    top: dict[str, bytes]


class BuildKit:
    """buildkitd, which looks for base images at the mirror, if one is given.

    `snapshotter`: native works on every file system, and copies the whole image for each step of a build. `group` is
    the control group of the steps, which the caller removes.
    """

    def __init__(
        self, home: Path, mirror: str | None = None, *, snapshotter: str = "native", group: str = cgroups.PARENT
    ) -> None:
        need("buildkitd", "buildctl", "runc", root=True)
        self.log = home / "buildkitd.log"
        self._home = home
        self._state = home / "state"
        address = f"unix://{self._state}/buildkitd.sock"
        self._buildctl = ("buildctl", "--addr", address)
        self._state.mkdir()
        registries = ""
        if mirror is not None:
            registries = snippet("buildkit/buildkitd.toml", mirror, home / "registries.toml").read_text()
        config = home / "buildkitd.toml"
        config.write_text(
            f"""root = "{self._state}/root"
            [grpc]
            address = ["{address}"]
            [otel]
            socketPath = "{self._state}/otel.sock" # not among this machine's own
            [worker.oci]
            enabled = true
            snapshotter = "{snapshotter}"
            networkMode = "host"
            defaultCgroupParent = "{group}"
            [worker.containerd]
            enabled = false
            {registries}"""
        )
        self._daemon = Process(["buildkitd", "--config", config], log=self.log, env=environment(home))
        self._daemon.wait_until(self._answers)

    def build(self, dockerfile: str, **files: str) -> Built:
        """Builds with these files at hand and returns the image; fails the test if it cannot."""
        context = self._home / "context"
        context.mkdir(exist_ok=True)
        for name, content in {"Dockerfile": dockerfile, **files}.items():
            (context / name).write_text(content)
        made = self._home / "built.tar"
        self._run(
            "build", "--progress", "plain", "--frontend", "dockerfile.v0",
            "--local", f"context={context}", "--local", f"dockerfile={context}",
            "--output", f"type=oci,dest={made}",
        )  # fmt: skip
        return _read(made)

    def build_layout(
        self,
        context: Path,
        layout: Path,
        *,
        base: tuple[str, Path, str],
        arguments: Mapping[str, str],
        secrets: Mapping[str, Path],
        seconds: float,
    ) -> None:
        """Builds the Dockerfile of a directory and writes the image, tagged `image`, as an OCI layout.

        `base` is an image's name in the Dockerfile, the OCI layout that is taken for it, and its digest.
        """
        name, place, digest = base
        options = [f"--opt=build-arg:{key}={value}" for key, value in arguments.items()]
        options += [f"--secret=id={key},src={file}" for key, file in secrets.items()]
        self._run(
            "build", "--progress", "plain", "--frontend", "dockerfile.v0",
            "--local", f"context={context}", "--local", f"dockerfile={context}",
            "--oci-layout", f"base={place}", "--opt", f"context:{name}=oci-layout://base@{digest}", *options,
            "--output", f"type=oci,tar=false,dest={layout},name=localhost/mirror:image",
            seconds=seconds,
        )  # fmt: skip

    def empty(self) -> None:
        """Forgets what was built and everything that was pulled for it."""
        self._run("prune", "--all")
        assert json.loads(self._run("du", "--format", "{{json .}}") or "null") is None

    def stop(self) -> None:
        """Ends the daemon and removes all but the log."""
        self._daemon.stop()
        remove_state(self._state)

    def _answers(self) -> bool:
        return (self._state / "buildkitd.sock").exists()

    def _run(self, *arguments: str, seconds: float = 60) -> str:
        return run(*self._buildctl, *arguments, home=self._home, seconds=seconds)


def _read(archive: Path) -> Built:
    """Reads an OCI image layout in a tar archive that holds one image for one platform."""
    with tarfile.open(archive) as layout:

        def member(name: str) -> bytes:
            content = layout.extractfile(name)
            assert content is not None, f"{name} is no file"
            return content.read()

        def blob(digest: str) -> bytes:
            return member(f"blobs/sha256/{digest.removeprefix('sha256:')}")

        manifest = json.loads(blob(json.loads(member("index.json"))["manifests"][0]["digest"]))
        layers = tuple(layer["digest"] for layer in manifest["layers"])
        top = layout.extractfile(f"blobs/sha256/{layers[-1].removeprefix('sha256:')}")
        with tarfile.open(fileobj=top) as changes:
            files = {entry.name: changes.extractfile(entry) for entry in changes if entry.isfile()}
            return Built(layers, {name: content.read() for name, content in files.items() if content})
