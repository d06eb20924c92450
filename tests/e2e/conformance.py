"""The OCI distribution conformance programs: run against an address, and their reports read."""

from __future__ import annotations

import re
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import Process, free_port, listens, tail
from tests.e2e.programs import environment, need

_SUITE = re.compile(r"^(OCI Conformance Test/|\[It\] OCI Distribution Conformance Tests )")
_WORDS = 3000  # characters about one failure; some repeat a body of megabytes
_SECONDS = 90.0  # for a whole suite; the longest takes a tenth of that on an idle machine


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of each check; a name may stand for several."""

    passed: Counter[str]
    failed: Mapping[str, str]
    """With the suite's own words."""
    skipped: frozenset[str]
    """What it was told not to do, or what would have needed that."""

    @property
    def complaints(self) -> str:
        """Every failure, as a person would want to read it."""
        return "\n\n".join(f"{name}:\n{words[:_WORDS]}" for name, words in self.failed.items())


class Suite:
    """One of the suites; `log` has what it printed."""

    def __init__(self, home: Path, program: str) -> None:
        need(program)
        self.log = home / f"{program}.log"
        self._home = home
        self._program = program
        self._runs = 0

    def run(self, **variables: str) -> Outcome:
        """Runs it to its end, with these OCI_ variables, and returns what its report says.

        Fails the test, with the end of the log, where it writes no report or takes too long.
        """
        self._runs += 1
        results = self._home / f"{self._program}-{self._runs}"
        results.mkdir()  # it also reads a file of settings from where it starts
        env = environment(self._home) | {f"OCI_{name}": value for name, value in variables.items()}
        env |= {"OCI_RESULTS_DIR": str(results), "OCI_REPORT_DIR": str(results)}
        with self.log.open("ab") as log:
            subprocess.run(
                [self._program],
                cwd=results, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                timeout=_SECONDS, check=False,
            )  # fmt: skip
        report = results / "junit.xml"
        if not report.exists():
            pytest.fail(f"{self._program} wrote no report:\n{tail(self.log)}")
        return read_report(report)


class Splitter:
    """Two registries behind one address: nginx sends what reads to `reads`, and all that belongs to a push to `writes`.

    Each is a host:port.
    """

    def __init__(self, home: Path, *, reads: str, writes: str) -> None:
        need("nginx")
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.log = home / "nginx.log"
        temporary = "\n".join(
            f"    {kind}_temp_path {home}/nginx-{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = home / "nginx.conf"
        config.write_text(_NGINX.format(home=home, port=port, reads=reads, writes=writes, temporary=temporary))
        self._process = Process(["nginx", "-e", "stderr", "-c", config], log=self.log, env=environment(home))
        self._process.wait_until(lambda: listens(port))

    def stop(self) -> None:
        self._process.stop()


# The state of an upload is asked for by GET; it is the registry's that has the upload.
_NGINX = """
daemon off;
pid {home}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
{temporary}
    map "$request_method $uri" $registry {{
        "~^(GET|HEAD) (?!.*/blobs/uploads/)" {reads};
        default {writes};
    }}
    server {{
        listen 127.0.0.1:{port};
        merge_slashes off;
        location / {{
            proxy_pass http://$registry$request_uri;
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_buffering off;
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""


def read_report(report: Path) -> Outcome:
    """Every check of a report. The older suite also reports on its own report, which says nothing about a registry."""
    passed: Counter[str] = Counter()
    failed: dict[str, str] = {}
    skipped = set()
    for case in ET.parse(report).iter("testcase"):
        if case.attrib["name"].startswith("[Report"):
            continue
        name = _SUITE.sub("", case.attrib["name"])
        if case.find("skipped") is not None or case.get("status") == "skipped":
            skipped.add(name)
        elif case.get("status") == "passed":
            passed[name] += 1
        else:
            failed[name] = "\n".join(filter(None, (text.strip() for text in case.itertext())))
    return Outcome(passed, failed, frozenset(skipped))
