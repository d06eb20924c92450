"""What does a warm blob cost, over few connections and many, plain and over TLS?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bench.figures import Answer, Case
from bench.image import Blob
from bench.machine import cpu_seconds
from bench.readers import flow
from bench.rounds import Bench, in_rounds, record, standing, warm
from bench.servers import Server, Shape
from bench.site import Site, upstream

CONNECTIONS = (1, 8, 64)
_COLUMNS = ("gb_per_second", "cpu_per_gb")


def ask(bench: Bench) -> Answer:
    """Every server, each number of connections."""
    answer = Answer("blobs", "Warm blobs")
    site = Site(bench.home / "blobs-site")
    image = site.add("library/blobs", [bench.effort.blob])
    with upstream(bench.home / "blobs-upstream", site) as behind:
        for tls in (False, True):
            cases = {number: answer.case(_case(image.layers[0], number, tls=tls)) for number in CONNECTIONS}
            names, shape = bench.rivals(), Shape(tls=tls)
            with standing(bench, answer, [*cases.values()], names, behind, warm(behind, image), shape) as servers:
                for number, case in cases.items():
                    for server in in_rounds(bench, servers):
                        record(answer, case, server.name, partial(_read, bench, server, image.layers[0], number))
    return answer


def _read(bench: Bench, server: Server, blob: Blob, connections: int) -> Mapping[str, float]:
    clock = partial(cpu_seconds, server.group)
    found = flow(server.port, blob, connections, bench.effort.seconds, clock, tls=server.tls)
    return {"gb_per_second": found.size / found.seconds / 1e9, "cpu_per_gb": found.clock / (found.size / 1e9)}


def _case(blob: Blob, connections: int, *, tls: bool) -> Case:
    many = "connection" if connections == 1 else "connections"
    title = f"Warm blob of {blob.size / (1 << 20):g} MiB, {connections} {many}{', TLS' if tls else ''}"
    return Case(f"{'tls' if tls else 'plain'}-{connections}", title, _COLUMNS, _COLUMNS)
