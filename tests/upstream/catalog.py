"""What the fake holds: repositories with their tags, manifests and blobs, and who may read them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.upstream.content import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    OCI_CONFIG,
    OCI_LAYER,
    Blob,
    Image,
    Index,
    Manifest,
    Stored,
    image_config,
    image_index,
    image_manifest,
    make_blob,
    make_manifest,
)

Layers = Sequence[int | bytes | Blob]
Tagged = Manifest | Image | Index


@dataclass
class Repository:
    """One repository; `readers` is None where it is public, else the users who may read it (empty: any user)."""

    name: str
    tags: dict[str, Manifest] = field(default_factory=dict)
    manifests: dict[Digest, Manifest] = field(default_factory=dict)
    blobs: dict[Digest, Blob] = field(default_factory=dict)
    readers: frozenset[str] | None = None

    def may_read(self, user: str | None) -> bool:
        """Whether this user (None: nobody in particular) may pull from here."""
        if self.readers is None:
            return True
        return user is not None and (not self.readers or user in self.readers)


class Catalog:
    """The repositories, and the ways a test fills and changes them. Content is made from names: equal in every run."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self._serial = itertools.count()

    def repository(self, name: str) -> Repository:
        """The repository of that name, made if need be."""
        return self.repositories.setdefault(name, Repository(name))

    def add_image(
        self,
        repository: str,
        tag: str | None = None,
        *,
        layers: Layers = (1000,),
        platform: str = "linux/amd64",
        docker: bool = False,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        subject: Stored | None = None,
        seed: str | None = None,
    ) -> Image:
        """Adds an image and tags it, if `tag` is given.

        A layer is a size in bytes (deterministic noise), bytes (see `tar_layer`), or a Blob that may be another
        image's. `docker` gives it Docker's media types; `seed` makes other noise than the names would.
        """
        home = self.repository(repository)
        stem = seed or f"{repository}:{tag or next(self._serial)}:{platform}"
        layer_type, config_type = (DOCKER_LAYER, DOCKER_CONFIG) if docker else (OCI_LAYER, OCI_CONFIG)
        blobs = [make_blob(layer, seed=f"{stem}/{n}", media_type=layer_type) for n, layer in enumerate(layers)]
        config = make_blob(image_config(blobs, platform, labels or {}), seed=stem, media_type=config_type)
        manifest = image_manifest(config, blobs, docker=docker, annotations=annotations or {}, subject=subject)
        for blob in (config, *blobs):
            home.blobs[blob.digest] = blob
        self._keep(home, manifest, tag)
        return Image(repository, tag, manifest, config, tuple(blobs))

    def add_index(
        self,
        repository: str,
        tag: str | None = None,
        *,
        platforms: Sequence[str] = ("linux/amd64", "linux/arm64/v8"),
        layers: Layers = (1000,),
        docker: bool = False,
    ) -> Index:
        """Adds an index with one image for each platform."""
        stem = f"{repository}:{tag or next(self._serial)}"
        images = {
            platform: self.add_image(
                repository, layers=layers, platform=platform, docker=docker, seed=f"{stem}:{platform}"
            )
            for platform in platforms
        }
        manifest = image_index(images, docker=docker)
        self._keep(self.repository(repository), manifest, tag)
        return Index(repository, tag, manifest, tuple(images.values()))

    def put_blob(
        self,
        repository: str,
        content: int | bytes | Blob,
        *,
        media_type: str = "application/octet-stream",
        algorithm: str = "sha256",
    ) -> Blob:
        """Adds a blob: so many bytes of noise, these bytes, or a blob that another repository has."""
        seed = f"{repository}/{next(self._serial)}"
        blob = make_blob(content, seed=seed, media_type=media_type, algorithm=algorithm)
        self.repository(repository).blobs[blob.digest] = blob
        return blob

    def put_manifest(
        self,
        repository: str,
        content: bytes | Mapping[str, Any] | Manifest,
        tag: str | None = None,
        *,
        media_type: str = OCI_MANIFEST,
        algorithm: str = "sha256",
    ) -> Manifest:
        """Adds a manifest of any media type and content, forged ones too: what it names need not exist."""
        if not isinstance(content, Manifest):
            content = make_manifest(content, media_type=media_type, algorithm=algorithm)
        self._keep(self.repository(repository), content, tag)
        return content

    def tag(self, repository: str, tag: str, target: Tagged) -> None:
        """Makes a tag mean a manifest, from now on."""
        self._keep(self.repository(repository), manifest_of(target), tag)

    def move_tag(self, repository: str, tag: str, target: Tagged) -> None:
        """The same for a tag that exists already. Raises KeyError where it does not."""
        if tag not in self.repositories[repository].tags:
            raise KeyError(f"{repository} has no tag {tag}")
        self.tag(repository, tag, target)

    def remove(self, repository: str, thing: Stored | Image | Index | str | None = None) -> None:
        """Takes away a tag (by name), a blob or a manifest with its tags, or with None the whole repository."""
        if thing is None:
            del self.repositories[repository]
            return
        home = self.repositories[repository]
        if isinstance(thing, str):
            del home.tags[thing]
            return
        home.blobs.pop(thing.digest, None)
        home.manifests.pop(thing.digest, None)
        home.tags = {tag: manifest for tag, manifest in home.tags.items() if manifest.digest != thing.digest}

    def make_private(self, repository: str, readers: Collection[str] = ()) -> None:
        """From now on only these users may pull from the repository; none named: anyone who has a credential."""
        self.repository(repository).readers = frozenset(readers)

    def make_public(self, repository: str) -> None:
        """From now on anyone may pull from the repository."""
        self.repository(repository).readers = None

    def _keep(self, home: Repository, manifest: Manifest, tag: str | None) -> None:
        home.manifests[manifest.digest] = manifest
        if tag is not None:
            home.tags[tag] = manifest


def manifest_of(target: Tagged) -> Manifest:
    """The manifest that an image, an index or a manifest is."""
    return target if isinstance(target, Manifest) else target.manifest
