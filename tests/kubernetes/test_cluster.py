"""The cluster that the other tests run in: what it does to the machine that it runs on."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.e2e import programs
from tests.e2e.processes import Process, eventually
from tests.e2e.programs import need, run
from tests.kubernetes.cluster import PROGRAMS, Cluster
from tests.kubernetes.settings import SANDBOX
from tests.kubernetes.traces import traces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]  # two starts, each of eight programs

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "sleeper"},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "sleeper", "image": SANDBOX, "ports": [{"containerPort": 80, "hostPort": 8080}]}],
    },
}


def test_cluster_leaves_nothing_behind(tmp_path: Path) -> None:
    """A cluster that was killed together with its test leaves no process, mount, interface, rule or setting.

    The files and the empty control groups that do stay are gone once another has been started in its place, and that
    one leaves nothing at all.
    """
    need(*PROGRAMS, root=True)
    before = traces(tmp_path)
    kubectl, killed = start(tmp_path)
    (tmp_path / "pod.json").write_text(json.dumps(POD))
    run(*kubectl, "create", f"--filename={tmp_path / 'pod.json'}", home=tmp_path)
    run(*kubectl, "wait", "--for=condition=Ready", "pod/sleeper", "--timeout=120s", home=tmp_path, seconds=150)

    killed.kill()

    assert eventually(lambda: traces(tmp_path) | {"groups": before["groups"]} == before, seconds=30), traces(tmp_path)
    with Cluster(tmp_path) as cluster:
        assert "sleeper" not in cluster.kubectl("get", "pods")
        cluster.apply(POD)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/sleeper", "--timeout=120s", seconds=150)
        assert traces(tmp_path)["rules"] == before["rules"]
    assert traces(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"logs", "killed.log", "pod.json"}


def test_what_a_cluster_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where a program of Kubernetes could not be built the gate fails, and says which one and how to get it."""
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(programs, "PATH", "")

    with pytest.raises(pytest.fail.Exception, match=r"coredns \(make e2e-programs\).* etcd \(Debian: etcd-server\)"):
        Cluster(tmp_path)


def start(home: Path) -> tuple[list[str], Process]:
    """A cluster in a process of its own, as by hand; and how that says kubectl is run."""
    log = home / "killed.log"
    process = Process([sys.executable, "-m", "tests.kubernetes", home], log=log, env=os.environ)
    process.wait_until(lambda: log.read_text().endswith("kubectl\n"), seconds=300)
    return shlex.split(log.read_text()), process
