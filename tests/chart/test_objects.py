"""What the chart's objects promise: who may do what, who reaches what, how long, and which files the mirror reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.config import load
from mirror.config.units import parse_size
from tests.chart.rendering import CHART, DOCUMENTED, Object, Rendered, Unrendered, render, run

Values = dict[str, Any]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """helm's."""
    return tmp_path / "home"


def made(name: str, home: Path, **more: Any) -> Rendered:
    """A documented combination, with more values."""
    return render({**DOCUMENTED[name], **more}, home)


def container(pod: Object) -> Object:
    """The only one of a pod."""
    (only,) = pod["containers"]
    found: Object = only
    return found


# What pods may do.


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name != "nodes alone"])
def test_the_mirror_may_do_next_to_nothing(name: str, home: Path) -> None:
    """As the `restricted` profile has it, and less: its disk is read-only, and it has no token of the cluster's."""
    rendered = made(name, home)
    for pod in (rendered.pod(), rendered.one("Pod")["spec"]):
        security = container(pod)["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False


def test_nodes_pods_may_write_the_runtimes_directory_alone(home: Path) -> None:
    """As root, without what makes root dangerous."""
    pod = made("node port", home).pod("DaemonSet")

    assert container(pod)["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"],
    }
    assert container(pod)["securityContext"]["readOnlyRootFilesystem"] is True
    assert [volume["hostPath"]["path"] for volume in pod["volumes"]] == ["/etc/containerd"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


# Who reaches what.


def test_the_admin_port_is_for_the_node_alone(home: Path) -> None:
    """Whoever shall read metrics is named."""
    (registry,) = made("defaults", home).one("NetworkPolicy")["spec"]["ingress"]
    _, admin = made("prometheus", home).one("NetworkPolicy")["spec"]["ingress"]

    assert registry == {"ports": [{"port": "registry", "protocol": "TCP"}]}
    assert admin["ports"] == [{"port": "admin", "protocol": "TCP"}]
    assert admin["from"] == DOCUMENTED["prometheus"]["networkPolicy"]["adminFrom"]
    assert made("open", home).all("NetworkPolicy") == []


@pytest.mark.parametrize("name", ["defaults", "node port", "load balancer", "ingress", "gateway"])
def test_nothing_exposes_the_admin_port(name: str, home: Path) -> None:
    """It has a Service of its own, without an address."""
    rendered = made(name, home)
    ports = {service["metadata"]["name"]: service["spec"]["ports"] for service in rendered.all("Service")}

    assert [port["name"] for port in ports["mirror"]] == ["registry"]
    assert rendered.one("Service", "mirror-admin")["spec"]["clusterIP"] == "None"


def test_exposures(home: Path) -> None:
    """Each way leads to the registry's port."""
    ports = made("node port", home).one("Service", "mirror")["spec"]["ports"]
    assert ports == [{"name": "registry", "port": 5000, "targetPort": "registry", "nodePort": 30500}]
    assert container(made("host port", home).pod())["ports"][0]["hostPort"] == 25500
    ingress = made("ingress", home)
    assert ingress.one("Ingress")["spec"]["rules"][0]["host"] == "mirror.test"
    assert ingress.config()["public_url"] == "https://mirror.test"
    gateway = made("gateway", home)
    assert gateway.one("HTTPRoute")["spec"]["rules"][0]["backendRefs"] == [{"name": "mirror", "port": 5000}]
    assert gateway.config()["public_url"] == "https://mirror.test"


def test_probes_ask_the_admin_port(home: Path) -> None:
    """A busy mirror is not killed: only one that does not say that it lives."""
    only = container(made("tls", home).pod())

    assert {probe: only[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "startupProbe": {"path": "/livez", "port": "admin"},
        "livenessProbe": {"path": "/livez", "port": "admin"},
        "readinessProbe": {"path": "/readyz", "port": "admin"},
    }


def test_prometheus_finds_it(home: Path) -> None:
    """By a ServiceMonitor that selects the admin Service, or by annotations."""
    rendered = made("prometheus", home)
    wanted = rendered.one("ServiceMonitor")["spec"]["selector"]["matchLabels"]
    labels = rendered.one("Service", "mirror-admin")["metadata"]["labels"]

    assert wanted.items() <= labels.items()
    assert not wanted.items() <= rendered.one("Service", "mirror")["metadata"]["labels"].items()
    assert rendered.one("ServiceMonitor")["metadata"]["labels"]["release"] == "prometheus"
    assert rendered.one("StatefulSet")["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "5001"


# Settings.


@pytest.mark.parametrize("name", [name for name in DOCUMENTED if name != "nodes alone"])
def test_the_settings_are_what_the_mirror_reads(name: str, home: Path, tmp_path: Path) -> None:
    """With the files of secrets where the pod has them."""
    rendered = made(name, home)
    config = rendered.config()
    paths = {
        f"/run/secrets/mirror/{item['path']}"
        for volume in rendered.pod()["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        for item in next(iter(source.values()))["items"]
    }
    named = set(config.get("tls", {}).values())
    for upstream in config.get("upstreams", {}).values():
        named |= {value for key, value in upstream.items() if key in ("ca_file", "password_file", "docker_config")}
    assert named == paths

    text = rendered.one("ConfigMap")["data"]["mirror.yaml"]
    for path in paths:  # the files themselves are the cluster's
        here = tmp_path / path.lstrip("/")
        here.parent.mkdir(parents=True, exist_ok=True)
        here.write_bytes(_file(here.name))
        text = text.replace(path, str(here))
    file = tmp_path / "mirror.yaml"
    file.write_text(text)
    settings = load(file, {})
    assert str(settings.listen) == "0.0.0.0:5000"
    assert str(settings.admin_listen) == "0.0.0.0:5001"
    assert settings.storage.path == Path("/var/lib/mirror")
    assert settings.drain_delay == 5.0


def _file(name: str) -> bytes:
    if name == "config.json":
        return b'{"auths": {"https://index.docker.io/v1/": {"username": "me", "password": "secret"}}}'
    if name == "password":
        return b"secret"
    return (Path(__file__).parents[1] / "certificates" / _CERTIFICATES.get(name, "ca.pem")).read_bytes()


_CERTIFICATES = {"tls.crt": "server.pem", "tls.key": "server.key", "ca.crt": "ca.pem"}


def test_credentials_and_authorities(home: Path) -> None:
    """Each secret is mounted once, and named by the upstream that it belongs to."""
    rendered = made("private", home)
    upstreams = rendered.config()["upstreams"]
    sources = next(v for v in rendered.pod()["volumes"] if v["name"] == "secrets")["projected"]["sources"]

    assert upstreams == {
        "docker.io": {"docker_config": "/run/secrets/mirror/upstreams/0/config.json"},
        "quay.io": {"ca_file": "/run/secrets/mirror/upstreams/1/ca.crt"},
        "registry.corp:5000": {
            "tag_ttl": "30s",
            "username": "ci",
            "password_file": "/run/secrets/mirror/upstreams/2/password",
            "ca_file": "/run/secrets/mirror/upstreams/2/ca.crt",
        },
    }
    assert [(kind, it["name"], it["items"][0]["key"]) for source in sources for kind, it in source.items()] == [
        ("secret", "hub", ".dockerconfigjson"),
        ("secret", "quay", "ca.pem"),
        ("secret", "corp", "token"),
        ("configMap", "corp-ca", "ca.crt"),
    ]


@pytest.mark.parametrize(
    ("size", "headroom", "most"),
    [
        ("50Gi", 10, 48_318_382_080),
        ("1Ti", 5, 1_044_536_046_387),
        ("100G", 20, 80_000_000_000),
        ("1.5Gi", 50, 805_306_368),
    ],
)
def test_the_budget_fits_the_volume(size: str, headroom: int, most: int, home: Path) -> None:
    """What the volume has, without its headroom: derived, and the most that may be given."""
    values: Values = {"persistence": {"size": size, "headroom": headroom}}
    assert parse_size(render(values, home).config()["storage"]["max_size"]) == most
    exact = render({**values, "config": {"storage": {"max_size": most}}}, home)
    assert parse_size(exact.config()["storage"]["max_size"]) == most
    with pytest.raises(Unrendered, match=r"config\.storage\.max_size"):
        render({**values, "config": {"storage": {"max_size": most + 1}}}, home)


@pytest.mark.parametrize("size", ["45GiB", "48GB", "1TiB", "500MiB", 1073741824])
def test_a_budget_in_the_mirrors_own_words(size: str | int, home: Path) -> None:
    """Sizes mean the same to the chart and to the mirror."""
    values: Values = {"config": {"storage": {"max_size": size}}}
    if parse_size(size) > 48_318_382_080:
        with pytest.raises(Unrendered, match=r"persistence\.size 50Gi"):
            render(values, home)
    else:
        assert parse_size(render(values, home).config()["storage"]["max_size"]) == parse_size(size)


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        ({}, 75),
        ({"shutdown_grace": "2m"}, 135),
        ({"drain_delay": "1m30s", "shutdown_grace": "500ms"}, 101),
        ({"shutdown_grace": "0s"}, 15),
    ],
)
def test_a_pod_has_the_time_that_it_needs_to_end(config: Values, seconds: int, home: Path) -> None:
    """More than `drain_delay` and `shutdown_grace` together: nothing is killed that may still be served."""
    assert render({"config": config}, home).pod()["terminationGracePeriodSeconds"] == seconds


def test_a_change_of_the_settings_replaces_the_pod(home: Path) -> None:
    """Unless it is to be read where it runs."""

    def annotations(**values: Any) -> Values:
        found: Values = render(values, home).one("StatefulSet")["spec"]["template"]["metadata"].get("annotations") or {}
        return found

    first, second = annotations(), annotations(config={"tag_ttl": "1m"})
    assert first["checksum/config"] != second["checksum/config"]
    assert annotations(reload="watch") == {}
    assert "--watch" in container(render({}, home).pod())["args"]


# Disks and replicas.


def test_the_cache_is_kept_or_not(home: Path) -> None:
    """In a claim that outlives the release, or in a directory that may not grow beyond its size."""
    kept, lost, placed = made("defaults", home), made("emptyDir", home), made("placed", home)
    (claim,) = kept.one("StatefulSet")["spec"]["volumeClaimTemplates"]

    assert claim["spec"]["resources"]["requests"]["storage"] == "50Gi"
    assert kept.one("StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    assert placed.one("StatefulSet")["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    assert "volumeClaimTemplates" not in lost.one("StatefulSet")["spec"]
    assert next(v for v in lost.pod()["volumes"] if v["name"] == "data")["emptyDir"] == {"sizeLimit": "10Gi"}


def test_only_replicas_are_spread_and_guarded(home: Path) -> None:
    """One pod cannot be spread, and a budget that never lets it go would stop drains."""
    alone, several = made("defaults", home), made("replicas", home)

    assert alone.all("PodDisruptionBudget") == []
    assert "topologySpreadConstraints" not in alone.pod()
    assert several.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert several.pod()["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_tls(home: Path) -> None:
    """From a secret that is there, or from cert-manager; who asks it for names gets those of the Service too."""
    assert made("tls", home).config()["tls"] == {
        "certificate": "/run/secrets/mirror/tls/tls.crt",
        "key": "/run/secrets/mirror/tls/tls.key",
        "client_ca": "/run/secrets/mirror/tls/ca.crt",
    }
    certificate = made("cert-manager", home).one("Certificate")["spec"]
    assert certificate["secretName"] == "mirror-tls"
    assert "mirror.caches.svc" in certificate["dnsNames"]
    assert "mirror.test" in certificate["dnsNames"]


# Nodes.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("node port", ["--mirror=http://127.0.0.1:30500", "--runtime=containerd"]),
        ("host port", ["--mirror=http://127.0.0.1:25500", "--runtime=crio"]),
        ("ingress", ["--mirror=https://mirror.test", "--registry=docker.io", "--registry=quay.io"]),
        ("nodes alone", ["--mirror=https://mirror.test", "--ca=/run/mirror/ca.crt", "--add-config-path"]),
    ],
)
def test_nodes_are_told_where_the_mirror_is(name: str, expected: list[str], home: Path) -> None:
    """By the way that the release gives them to it."""
    arguments = container(made(name, home).pod("DaemonSet"))["args"]

    assert arguments[:3] == ["node-config", "apply", "--hold"]
    assert set(expected) <= set(arguments)


def test_nodes_see_that_the_mirror_sees_them(home: Path) -> None:
    """By the runtime's socket and the mirror's own figures, which nobody else's pods may read."""
    rendered = made("verified", home)
    arguments = container(rendered.pod("DaemonSet"))["args"]
    (_, admin) = rendered.one("NetworkPolicy")["spec"]["ingress"]
    labels = rendered.one("DaemonSet")["spec"]["template"]["metadata"]["labels"]

    assert "--verify-image=registry.k8s.io/pause:3.10" in arguments
    assert "--cri=unix:///run/runtime/containerd.sock" in arguments
    assert "--admin=http://mirror-admin.caches.svc:5001" in arguments
    assert admin["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert "/run/containerd" in [v["hostPath"]["path"] for v in rendered.pod("DaemonSet")["volumes"] if "hostPath" in v]
    with pytest.raises(Unrendered, match=r"nodes\.verify\.admin"):
        made("nodes alone", home, nodes={"enabled": True, "mirror": "http://a.test", "verify": {"image": "a"}})


def test_nodes_alone(home: Path) -> None:
    """Nothing but the DaemonSet, for a namespace of its own."""
    assert [found["kind"] for found in made("nodes alone", home)] == ["DaemonSet"]


# What cannot be.


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {"repository": ""}}, r"image\.repository is not set"),
        ({"replicas": "two"}, "/replicas"),
        ({"imgae": {}}, "imgae"),
        ({"persistence": {"szie": "1Gi"}}, "szie"),
        ({"persistence": {"size": "50 Gigs"}}, "50 Gigs"),
        ({"config": {"storge": {}}}, "storge"),
        ({"config": {"storage": {"max_size": "lots"}}}, r'"lots" is no size'),
        ({"config": {"listen": "0.0.0.0:80"}}, r"config\.listen"),
        ({"config": {"storage": {"path": "/data"}}}, r"config\.storage\.path"),
        ({"service": {"type": "Public"}}, "/service/type"),
        ({"ingress": {"enabled": True}}, r"ingress\.host"),
        ({"httpRoute": {"enabled": True}}, r"httpRoute\.parentRefs"),
        ({"tls": {"enabled": True}}, r"tls\.existingSecret"),
        ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, r"tls\.certManager\.issuerRef"),
        ({"nodes": {"enabled": True}}, r"nodes\.mirror is not set"),
        ({"nodes": {"enabled": True, "mirror": "mirror.test"}}, "/nodes/mirror"),
        ({"nodes": {"enabled": True, "runtime": "rkt"}}, "/nodes/runtime"),
        ({"credentials": {"docker.io": {"secret": "hub"}}}, "type"),
        ({"authorities": {"a.test": {"secret": "x", "configMap": "y"}}}, r"authorities\.a\.test"),
        ({"test": {"image": "alpine"}}, "/test/image"),
    ],
)
def test_a_bad_value_is_named(values: Values, said: str, home: Path) -> None:
    """When the chart is rendered, before anything is installed."""
    with pytest.raises(Unrendered, match=said):
        render(values, home)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_notes_tell_the_next_step(name: str, home: Path) -> None:
    """For the exposure that was chosen."""
    notes = run(
        "helm", home, DOCUMENTED[name], "install", "mirror", str(CHART), "--dry-run=client", "--namespace=caches"
    ).partition("NOTES:")[2]  # fmt: skip

    if name == "nodes alone":
        assert "rollout status daemonset/mirror-nodes" in notes
        return
    assert "helm test mirror --namespace caches" in notes
    nexts = {"defaults": "service.type=NodePort", "host port": "127.0.0.1:25500", "ingress": "https://mirror.test"}
    assert nexts.get(name, "") in notes
    assert ("caches of their own" in notes) is (name == "replicas")


def test_the_chart_is_of_this_version() -> None:
    """An image is looked for by the version of the program."""
    from mirror import __version__

    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__
