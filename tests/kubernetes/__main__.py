"""Starts the tests' cluster and says how to use it, until SIGTERM or Ctrl-C: `python -m tests.kubernetes DIRECTORY`.

Needs root and an empty directory for all that it writes; what is left there at the end are the logs.
"""

from __future__ import annotations

import argparse
import shlex
import signal
from pathlib import Path

from tests.kubernetes.cluster import Cluster


def main() -> None:
    """Parses the command line and serves."""
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    home: Path = parser.parse_args().directory.absolute()
    home.mkdir(parents=True, exist_ok=True)
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with Cluster(home) as cluster:
        wanted = [f"{name}={cluster.env[name]}" for name in ("PATH", "HOME", "KUBECONFIG")]
        print(shlex.join((*cluster.inside.entrance, "env", *wanted, "kubectl")), flush=True)
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
