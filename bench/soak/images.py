"""The images of the long run, made from repository and number alone: upstream and clients make the same ones."""

from __future__ import annotations

import functools
import json
import math
import random
from dataclasses import dataclass

from tests.upstream import Blob, Catalog, Image, Manifest
from tests.upstream.content import OCI_LAYER, make_blob

REPOSITORIES = tuple(f"library/soak-{number}" for number in range(6))
MOVING, LAGGING, FIXED = "latest", "stable", "v1"
TAGS = sorted((MOVING, LAGGING, FIXED))

_BASES = 8
_BASE_BYTES = 3 << 20
_LARGEST = 16 << 20
_SMALLEST = 500
_NUMBER = "soak.number"
_SPOILT_EVERY = 4
_SIGNED_EVERY = 3


@dataclass(frozen=True, slots=True)
class Release:
    """One image of a repository; numbers rise from 1. `signature`: a manifest that refers to it, if it has one."""

    number: int
    image: Image
    signature: Manifest | None
    spoilt: bool
    """Whether the upstream may give wrong bytes of its own layers."""

    @property
    def own(self) -> tuple[Blob, ...]:
        """The layers that no other image has."""
        return self.image.layers[1:]

    def may_be_wrong(self, blob: Blob) -> bool:
        """Whether a part of it may come with wrong bytes, as long as the mirror has not verified it."""
        return self.spoilt and blob in self.own


def add(catalog: Catalog, repository: str, number: int) -> Release:
    """Puts an image, and what signs it, into a catalog."""
    choice = random.Random(f"{repository}@{number}")
    sizes = [_size(choice) for _ in range(choice.randint(1, 4))]
    image = catalog.add_image(
        repository,
        layers=[_base(choice.randrange(_BASES)), *sizes],
        annotations={_NUMBER: str(number)},
        seed=f"{repository}@{number}",
    )
    signature = None
    if number % _SIGNED_EVERY == 0:
        signed = catalog.add_image(repository, layers=[300], subject=image.manifest, seed=f"{repository}@{number}.sig")
        signature = signed.manifest
    return Release(number, image, signature, spoilt=number % _SPOILT_EVERY == 0)


@functools.lru_cache(maxsize=1000)
def release(repository: str, number: int) -> Release:
    """What `add` adds, for those who only want to know."""
    return add(Catalog(), repository, number)


def number_of(manifest: bytes) -> int:
    """Which image a manifest is of. Raises ValueError where it is none of ours."""
    try:
        return int(json.loads(manifest)["annotations"][_NUMBER])
    except (KeyError, TypeError) as error:
        raise ValueError("not a manifest of these images") from error


def _size(choice: random.Random) -> int:
    """Small ones are as frequent as large ones, on a scale of powers."""
    return round(_SMALLEST * math.exp(choice.random() * math.log(_LARGEST / _SMALLEST)))


@functools.lru_cache(maxsize=_BASES)
def _base(number: int) -> Blob:
    return make_blob(_BASE_BYTES, seed=f"soak-base-{number}", media_type=OCI_LAYER)
