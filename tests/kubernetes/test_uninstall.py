"""The end of the releases: the node is as it was before the first of them."""

from __future__ import annotations

import pytest

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.release import URL, Release
from tests.kubernetes.settings import RUNTIME

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_what_is_uninstalled_leaves_the_node_as_it_was(
    mirror: Release, nodes: Release, untouched: list[str], cluster: Cluster
) -> None:
    """Byte for byte; of the mirror only the claim with its cache stays."""
    assert cluster.tree(RUNTIME.parent) != untouched

    nodes.uninstall()
    assert cluster.tree(RUNTIME.parent) == untouched

    mirror.uninstall()
    assert not cluster.answers(f"{URL}/v2/")
    assert "data-mirror-0" in mirror.kubectl("get", "persistentvolumeclaims", "--output=name")
    left = mirror.kubectl(
        "get", "statefulset,service,configmap,networkpolicy", "--selector=helm.sh/chart", "--output=name"
    )
    assert left == ""
