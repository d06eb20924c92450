"""The mirror in a real Kubernetes of one node: the control plane, a kubelet, containerd."""
