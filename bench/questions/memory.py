"""How much memory does a server take, idle, at its most under load, and afterwards?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from bench import machine
from bench.figures import Answer, Case
from bench.image import Image, fetch
from bench.load import request
from bench.questions.manifests import CONNECTIONS
from bench.readers import flow, read
from bench.rounds import Bench, record, settle, started
from bench.servers import TITLES
from bench.site import Site, Upstream, upstream

_COLUMNS = ("idle_memory", "cold_memory", "blobs_memory", "manifests_memory", "memory")


def ask(bench: Bench) -> Answer:
    """Every server, started anew in each round: a cold blob, then blobs and manifests over many connections."""
    answer = Answer("memory", "Memory")
    title = f"Memory, MB: after its start; the most so far after a cold blob of {bench.effort.blob / (1 << 20):g} MiB, "
    many = f"{CONNECTIONS} connections"
    case = answer.case(Case("memory", f"{title}blobs and manifests over {many}; when all is quiet again", _COLUMNS))
    site = Site(bench.home / "memory-site")
    image = site.add("library/memory", [bench.effort.blob])
    with upstream(bench.home / "memory-upstream", site) as behind:
        for _ in range(bench.effort.rounds):
            for name in bench.rivals():
                answer.servers.setdefault(name, TITLES[name])
                record(answer, case, name, partial(_use, bench, answer, name, behind, image))
    return answer


def _use(bench: Bench, answer: Answer, name: str, behind: Upstream, image: Image) -> Mapping[str, float]:
    with started(bench, name, behind) as server:
        answer.servers[name] = server.what
        found: dict[str, float] = {"idle_memory": machine.memory_bytes(server.group)}
        fetch(server.port, image.by_tag)
        read(server.port, image.layers)
        settle(server)
        found["cold_memory"] = machine.peak_bytes(server.group)
        flow(server.port, image.layers[0], CONNECTIONS, bench.effort.seconds, lambda: 0.0)
        found["blobs_memory"] = machine.peak_bytes(server.group)
        request(bench.home, server.port, image.by_digest, CONNECTIONS, bench.effort.seconds)
        found["manifests_memory"] = machine.peak_bytes(server.group)
        settle(server)
        found["memory"] = machine.memory_bytes(server.group)
    return {key: value / 1e6 for key, value in found.items()}
