"""Every documented combination of values is what helm 3 and 4, and the API servers of three versions, accept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.chart import schemas
from tests.chart.rendering import DOCUMENTED, HELMS, KUBERNETES, Rendered, render, run
from tests.e2e.programs import environment, missing, need

CUSTOM = {"ServiceMonitor", "HTTPRoute", "Certificate"}
combinations = pytest.mark.parametrize(
    "values", DOCUMENTED.values(), ids=[name.replace(" ", "-") for name in DOCUMENTED]
)


@combinations
def test_both_helms_make_the_same_of_it(values: dict[str, object], tmp_path: Path) -> None:
    """And neither finds anything to say about the chart."""
    made = [list(render(values, tmp_path, helm=helm)) for helm in HELMS]
    for helm in HELMS:
        chart = str(Path(__file__).parents[2] / "helm" / "mirror")
        run(helm, tmp_path, values, "lint", "--strict", chart, f"--kube-version={KUBERNETES[1]}")

    assert sorted(map(json.dumps, made[0])) == sorted(map(json.dumps, made[1])) != []


@pytest.fixture(scope="module")
def locations(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where the schemas are."""
    if not schemas.CRDS.is_dir():
        missing("needs the schemas of custom kinds (make e2e-programs)")
    return schemas.write(tmp_path_factory.mktemp("schemas"))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """What all combinations make."""
    home = tmp_path_factory.mktemp("everything")
    return Rendered("\n---\n".join(render(values, home).text for values in DOCUMENTED.values()))


def check(rendered: Rendered, locations: list[str], version: str, home: Path) -> tuple[list[str], set[str]]:
    """What kubeconform finds wrong, and the kinds it has seen."""
    need("kubeconform")
    looked = [f"--schema-location={location}" for location in locations]
    done = subprocess.run(
        ["kubeconform", "-kubernetes-version", version, "-verbose", "-output=json", *looked],
        input=rendered.text, env=environment(home), capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)["resources"]
    wrong = [f"{it['kind']}: {it['msg']}" for it in found if it["status"] != "statusValid"]
    assert done.returncode == (1 if wrong else 0), done.stderr
    return wrong, {it["kind"] for it in found}


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_is_what_the_version_knows(
    version: str, everything: Rendered, locations: list[str], tmp_path: Path
) -> None:
    """No field that it does not know, none of a wrong type; custom kinds by their own definitions."""
    wrong, kinds = check(everything, locations, version, tmp_path)

    assert wrong == []
    assert kinds >= CUSTOM | {"StatefulSet", "DaemonSet", "NetworkPolicy", "Ingress", "PodDisruptionBudget", "Pod"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("terminationGracePeriodSeconds: ", "terminationGracePeriod: "),
        ("failureThreshold: 120", "failureThreshold: many"),
        ("    - port: admin\n", "    - prt: admin\n"),
        ("kind: StatefulSet", "kind: StatefullSet"),
    ],
)
def test_what_is_wrong_would_be_seen(old: str, new: str, locations: list[str], tmp_path: Path) -> None:
    """A check that lets everything pass would be none."""
    text = render(DOCUMENTED["prometheus"], tmp_path).text
    assert old in text

    assert check(Rendered(text.replace(old, new)), locations, KUBERNETES[-1], tmp_path)[0] != []
