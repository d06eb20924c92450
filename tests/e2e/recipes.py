"""The programs that no Debian package brings in the version that the end-to-end tests want: the one table of pins.

Standard library only: `tests.e2e.build_programs` reads this before anything is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Patch:
    """A line of the module's own source that is replaced before it is built; it has to be there exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class GoProgram:
    """Programs of one Go module, fetched through the module proxy."""

    name: str
    module: str
    version: str
    packages: tuple[tuple[str, str], ...]
    """Where each program goes in the cache directory, and its package, below the module."""
    ldflags: str = ""
    patch: Patch | None = None
    test: bool = False
    """The package is a test, and the program is what runs it."""
    parts: str = ""
    """The version at which those modules are published that this one replaces with directories in its repository."""

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output for output, _ in self.packages)


@dataclass(frozen=True, slots=True)
class DebianRoot:
    """A directory that holds another release of Debian."""

    name: str
    version: str
    packages: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True, slots=True)
class GoFiles:
    """Files of one Go module, as they are; the module proxy has them where nothing else can be fetched."""

    name: str
    module: str
    version: str
    files: tuple[tuple[str, str], ...]
    """Where each file goes in the cache directory, and where it is in the module."""

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output for output, _ in self.files)


Recipe = GoProgram | GoFiles | DebianRoot

# The slowest first, so that they do not end up alone at the end.
RECIPES: tuple[Recipe, ...] = (
    DebianRoot(
        "trixie",
        "trixie",
        (
            "ca-certificates",
            "containerd",
            "cosign",
            "crun",
            "docker-cli",
            "docker.io",
            "iptables",
            "mount",
            "netavark",
            "podman",
            "runc",
            "skopeo",
        ),
    ),
    # What the mirror's image is built on where no other image can be had, with what makes environments of Python.
    DebianRoot("python", "trixie", ("ca-certificates", "python3-venv")),
    GoProgram(
        "kubernetes",
        "k8s.io/kubernetes",
        "v1.37.2",
        tuple(
            (f"bin/{program}", f"cmd/{program}")
            for program in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-proxy",
                "kube-scheduler",
                "kubectl",
                "kubelet",
            )
        ),
        # Without them a server says that it is v0.0.0-master, which its clients cannot read.
        ldflags=" ".join(
            f"-X k8s.io/component-base/version.{name}={value}"
            for name, value in (("gitVersion", "v1.37.2"), ("gitMajor", "1"), ("gitMinor", "37"))
        ),
        parts="v0.37.2",
    ),
    GoProgram("coredns", "github.com/coredns/coredns", "v1.15.0", (("bin/coredns", ""),)),
    GoProgram("helm", "helm.sh/helm/v4", "v4.3.1", (("bin/helm", "cmd/helm"),)),
    GoProgram("helm3", "helm.sh/helm/v3", "v3.22.0", (("bin/helm3", "cmd/helm"),)),
    GoProgram(
        "buildkit",
        "github.com/moby/buildkit",
        "v0.34.2",
        (("bin/buildctl", "cmd/buildctl"), ("bin/buildkitd", "cmd/buildkitd")),
        ldflags="-X github.com/moby/buildkit/version.Version=v0.34.2",
    ),
    GoProgram("registry3", "github.com/distribution/distribution/v3", "v3.1.2", (("bin/registry3", "cmd/registry"),)),
    GoProgram(
        "containerd2",
        "github.com/containerd/containerd/v2",
        "v2.4.2",
        (
            ("containerd2/ctr", "cmd/ctr"),
            ("containerd2/containerd-shim-runc-v2", "cmd/containerd-shim-runc-v2"),
            ("containerd2/containerd", "cmd/containerd"),
        ),
    ),
    GoProgram("crictl", "sigs.k8s.io/cri-tools", "v1.37.0", (("bin/crictl", "cmd/crictl"),)),
    GoProgram(
        "conformance",
        "github.com/opencontainers/distribution-spec/conformance",
        "v0.0.0-20260831232431-97274622c111",
        (("bin/conformance", ""),),
        # Without pushes some kinds of data have a status and no name, and the program dies before its reports.
        patch=Patch(
            "run.go",
            "\t\tresults.Data[r.State.Data[k].name] = v\n",
            "\t\tif data := r.State.Data[k]; data != nil {\n\t\t\tresults.Data[data.name] = v\n\t\t}\n",
        ),
    ),
    GoProgram(
        "conformance11",
        "github.com/opencontainers/distribution-spec/conformance",
        "v0.0.0-20231101194043-f2182352d4cc",
        (("bin/conformance11", ""),),
        test=True,
    ),
    GoProgram("kubeconform", "github.com/yannh/kubeconform", "v0.8.0", (("bin/kubeconform", "cmd/kubeconform"),)),
    GoFiles(
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        tuple(
            (f"crds/{kind}.yaml", f"example/prometheus-operator-crd/monitoring.coreos.com_{kind}.yaml")
            for kind in ("prometheusrules", "servicemonitors")
        ),
    ),
    GoFiles(
        "gateway-api",
        "sigs.k8s.io/gateway-api",
        "v1.4.0",
        (("crds/httproutes.yaml", "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml"),),
    ),
    GoFiles(
        "cert-manager",
        "github.com/cert-manager/cert-manager",
        "v1.21.2",
        (("crds/certificates.yaml", "deploy/crds/cert-manager.io_certificates.yaml"),),
    ),
    GoProgram("oras", "oras.land/oras", "v1.3.6", (("bin/oras", "cmd/oras"),)),
    GoProgram("crane", "github.com/google/go-containerregistry", "v0.22.1", (("bin/crane", "cmd/crane"),)),
)


def cache(environ: Mapping[str, str]) -> Path:
    """Where the programs are put, and looked for."""
    if chosen := environ.get("E2E_PROGRAMS"):
        return Path(chosen).absolute()
    base = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home(), ".cache")
    return Path(base, "mirror-e2e").absolute()


CACHE = cache(os.environ)
