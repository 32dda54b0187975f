"""The manifest: what a dataset is. Its digest is the dataset's identity."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from core.ml.data.atomic import replace_file
from core.types import Split

MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestItem:
    """One image.

    Attributes:
        name: path inside the archive.
        label: index into the manifest's classes.
        split: where it was put.
        sha256: of the encoded bytes.
        width: pixels, upright.
        height: pixels, upright.
    """

    name: str
    label: int
    split: Split
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Manifest:
    """The images of a dataset in their final order: row i of every image cache is `items[i]`.

    Attributes:
        classes: class names, sorted.
        items: images, sorted by name.
        seed: seed of the splits.
        preprocess_version: version of the preprocessing that its caches are made with.
    """

    classes: tuple[str, ...]
    items: tuple[ManifestItem, ...]
    seed: int
    preprocess_version: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the JSON form, in hex: equal for equal datasets, however they were packed."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Return the one JSON form of this manifest."""
        body = {
            "version": MANIFEST_VERSION,
            "seed": self.seed,
            "preprocess_version": self.preprocess_version,
            "classes": self.classes,
            "items": [asdict(item) for item in self.items],
        }
        return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return the manifest that `to_json` wrote.

        Raises:
            ValueError: for another version or a damaged file.
        """
        body = json.loads(data)
        if body.get("version") != MANIFEST_VERSION:
            raise ValueError(f"manifest version {body.get('version')}, expected {MANIFEST_VERSION}")
        return cls(
            classes=tuple(body["classes"]),
            items=tuple(_item(fields) for fields in body["items"]),
            seed=body["seed"],
            preprocess_version=body["preprocess_version"],
        )

    def labels(self) -> npt.NDArray[np.int64]:
        """Return the class index of each row, shape (N,)."""
        return np.array([item.label for item in self.items], dtype=np.int64)

    def indices(self, split: Split) -> npt.NDArray[np.int64]:
        """Return the rows of one split in ascending order, shape (n,)."""
        return np.array([i for i, item in enumerate(self.items) if item.split is split], np.int64)

    def counts(self) -> dict[str, dict[Split, int]]:
        """Return the number of images by class name and split, zeros included."""
        table = {name: dict.fromkeys(Split, 0) for name in self.classes}
        for item in self.items:
            table[self.classes[item.label]][item.split] += 1
        return table


def build_manifest(
    classes: Iterable[str], items: Iterable[ManifestItem], *, seed: int, preprocess_version: int
) -> Manifest:
    """Return a manifest with its items in order.

    Raises:
        ValueError: for unsorted classes or two items of one name.
    """
    names = tuple(classes)
    ordered = tuple(sorted(items, key=lambda item: item.name))
    if list(names) != sorted(set(names)):
        raise ValueError("classes must be sorted and distinct")
    if len({item.name for item in ordered}) != len(ordered):
        raise ValueError("two items have one name")
    return Manifest(names, ordered, seed=seed, preprocess_version=preprocess_version)


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest; after a crash the file is whole or absent."""
    with replace_file(path) as file:
        file.write(manifest.to_json())


def load_manifest(path: Path) -> Manifest:
    """Return the manifest in a file.

    Raises:
        ValueError: for another version or a damaged file.
    """
    return Manifest.from_json(path.read_bytes())


def _item(fields: dict[str, Any]) -> ManifestItem:
    return ManifestItem(**{**fields, "split": Split(fields["split"])})
