"""The questions, each in a module of its own; every one can be asked alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.figures import Answer
from bench.questions import blobs, cold, cores, disk, herd, image, manifests, memory, objects, profile, workers
from bench.rounds import Bench

QUESTIONS: Mapping[str, Callable[[Bench], Answer]] = {
    "blobs": blobs.ask,
    "manifests": manifests.ask,
    "cold": cold.ask,
    "herd": herd.ask,
    "image": image.ask,
    "memory": memory.ask,
    "workers": workers.ask,
    "cores": cores.ask,
    "disk": disk.ask,
    "objects": objects.ask,
    "profile": profile.ask,
}
"""In the order in which they are asked."""
