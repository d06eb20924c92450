"""What each program of the node is told: its files and its command line."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from tests.e2e.programs import CNI

NODE = "node"
ADDRESS = "10.77.0.1"
"""The node's, on its pods' bridge. The API, the cluster's DNS and every NodePort are there."""
PODS, SERVICES = "10.77.0.0/24", "10.96.0.0/16"
API = f"https://{ADDRESS}:6443"
DOMAIN = "cluster.local"
SANDBOX = "localhost/sandbox:image"
SOCKET = Path("/run/containerd/containerd.sock")
RUNTIME = Path("/etc/containerd/config.toml")
CERTS_D = Path("/etc/containerd/certs.d")

_ETCD = "http://127.0.0.1:2379"
_BRIDGE = "pods"


class Settings:
    """The files under `home`, outside of what the node's own directories hold."""

    def __init__(self, home: Path, *, cgroup: str) -> None:
        self.home = home
        self.kubeconfig = home / "kubeconfig"
        self._tokens, self._signing = home / "tokens.csv", home / "signing.key"
        self._apiserver = home / "apiserver"
        self._cni, self._kubelet, self._corefile = home / "cni", home / "kubelet.json", home / "Corefile"
        token = secrets.token_hex(16)
        self._tokens.write_text(f'{token},admin,1,"system:masters"\n')
        self.kubeconfig.write_text(json.dumps(_kubeconfig(token, self._apiserver / "apiserver.crt")))
        self._cni.mkdir()
        (self._cni / "pods.conflist").write_text(json.dumps(_network(home / "addresses")))
        self._kubelet.write_text(json.dumps(_kubelet(home, cgroup)))

    @property
    def signing_key(self) -> Path:
        """Signs the tokens of service accounts; to be made."""
        return self._signing

    def runtime(self) -> str:
        """containerd's own configuration."""
        return _RUNTIME.format(cni=self._cni, plugins=CNI, sandbox=SANDBOX, certs=CERTS_D)

    def names(self, hosts: dict[str, str]) -> None:
        """Makes the cluster's DNS answer for these names too, each an address."""
        lines = "\n".join(f"  {address} {name}" for name, address in hosts.items())
        self._corefile.write_text(_COREFILE.format(address=ADDRESS, config=self.kubeconfig, hosts=lines, domain=DOMAIN))

    def command(self, program: str) -> list[str | Path]:
        """How a program is started."""
        match program:
            case "containerd":
                return ["containerd", "--config", RUNTIME]
            case "etcd":
                return [
                    "etcd", "--data-dir", self.home / "etcd", "--unsafe-no-fsync",
                    "--listen-client-urls", _ETCD, "--advertise-client-urls", _ETCD,
                    "--listen-peer-urls", "http://127.0.0.1:2380",
                ]  # fmt: skip
            case "kube-apiserver":
                return [
                    "kube-apiserver", f"--etcd-servers={_ETCD}", "--allow-privileged",
                    f"--bind-address={ADDRESS}", f"--advertise-address={ADDRESS}", "--secure-port=6443",
                    f"--cert-dir={self._apiserver}", f"--service-cluster-ip-range={SERVICES}",
                    f"--service-account-key-file={self._signing}",
                    f"--service-account-signing-key-file={self._signing}",
                    f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
                    f"--token-auth-file={self._tokens}", "--authorization-mode=RBAC",
                ]  # fmt: skip
            case "kube-controller-manager":
                return [
                    "kube-controller-manager", f"--service-account-private-key-file={self._signing}",
                    f"--root-ca-file={self._apiserver / 'apiserver.crt'}", *self._alone(program),
                ]  # fmt: skip
            case "kube-scheduler":
                return ["kube-scheduler", *self._alone(program)]
            case "kubelet":
                return [
                    "kubelet", f"--config={self._kubelet}", f"--kubeconfig={self.kubeconfig}",
                    f"--cert-dir={self.home / 'kubelet'}", f"--hostname-override={NODE}", f"--node-ip={ADDRESS}",
                ]  # fmt: skip
            case "kube-proxy":
                return [
                    "kube-proxy", f"--kubeconfig={self.kubeconfig}", f"--hostname-override={NODE}",
                    # The connection tracker's size is the whole machine's: 0 means to leave it alone.
                    "--proxy-mode=iptables", "--conntrack-max-per-core=0", "--conntrack-min=0",
                    "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
                ]  # fmt: skip
            case "coredns":
                return ["coredns", "-conf", self._corefile]
        raise ValueError(program)

    def _alone(self, program: str) -> list[str]:
        return [f"--kubeconfig={self.kubeconfig}", "--leader-elect=false", f"--cert-dir={self.home / program}"]


def _kubeconfig(token: str, ca: Path) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "node", "cluster": {"server": API, "certificate-authority": str(ca)}}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "node", "context": {"cluster": "node", "user": "admin"}}],
        "current-context": "node",
    }


def _network(addresses: Path) -> dict[str, Any]:
    bridge = {
        "type": "bridge",
        "bridge": _BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(addresses),
            "ranges": [[{"subnet": PODS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports]}


def _kubelet(home: Path, cgroup: str) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "readOnlyPort": 0,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "clusterDNS": [ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": "",
        "volumePluginDir": str(home / "plugins"),
        # Control groups are the whole machine's: all are made below one of ours, and none for the node itself.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        # A full disk of this machine shall not evict the pods.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        "makeIPTablesUtilChains": False,
        "syncFrequency": "10s",
    }


# No right is asked for that root need not have: an out-of-memory score below one's own, AppArmor.
_RUNTIME = """version = 3
[plugins.'io.containerd.internal.v1.opt']
path = "/var/lib/containerd/opt"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{sandbox}"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "{certs}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{plugins}"]
conf_dir = "{cni}"
"""

_COREFILE = """.:53 {{
 bind {address}
 errors
 kubernetes {domain} in-addr.arpa {{
  kubeconfig {config}
 }}
 hosts {{
{hosts}
  fallthrough
 }}
}}
"""
