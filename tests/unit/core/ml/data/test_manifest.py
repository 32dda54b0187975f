"""The manifest: one JSON form, one identity."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.ml.data.manifest import (
    Manifest,
    ManifestItem,
    build_manifest,
    load_manifest,
    save_manifest,
)
from core.types import Split


def item(name: str, label: int = 0, split: Split = Split.TRAIN) -> ManifestItem:
    return ManifestItem(name, label, split, hashlib.sha256(name.encode()).hexdigest(), 30, 20)


ITEMS = [item("b/1.png", 1), item("a/2.png", 0, Split.TEST), item("a/1.png", 0, Split.VAL)]


def build(items: list[ManifestItem] = ITEMS, seed: int = 0) -> Manifest:
    return build_manifest(["a", "b\u202e<"], items, seed=seed, preprocess_version=1)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    save_manifest(build(), tmp_path / "manifest.json")
    loaded = load_manifest(tmp_path / "manifest.json")
    assert loaded == build()
    assert loaded.items[0].split is Split.VAL
    assert loaded.digest == hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()


def test_the_identity_does_not_depend_on_the_order() -> None:
    assert build(ITEMS[::-1]).digest == build().digest


@pytest.mark.parametrize(
    "other",
    [
        build(seed=1),
        build(ITEMS[:2]),
        build([replace(ITEMS[0], split=Split.VAL), *ITEMS[1:]]),
        build([replace(ITEMS[0], sha256="0" * 64), *ITEMS[1:]]),
        replace(build(), preprocess_version=2),
        replace(build(), classes=("a", "c")),
    ],
)
def test_the_identity_depends_on_everything_else(other: Manifest) -> None:
    assert other.digest != build().digest


def test_rows_follow_the_sorted_names() -> None:
    manifest = build()
    assert [i.name for i in manifest.items] == ["a/1.png", "a/2.png", "b/1.png"]
    assert manifest.labels().tolist() == [0, 0, 1]
    assert manifest.indices(Split.TRAIN).tolist() == [2]
    assert manifest.indices(Split.TEST).tolist() == [1]
    assert manifest.counts()["a"] == {Split.TRAIN: 0, Split.VAL: 1, Split.TEST: 1}


def test_two_items_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        build([*ITEMS, ITEMS[0]])


def test_unsorted_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="sorted"):
        build_manifest(["b", "a"], ITEMS, seed=0, preprocess_version=1)


def test_another_version_is_refused() -> None:
    body = json.loads(build().to_json()) | {"version": 99}
    with pytest.raises(ValueError, match="version 99"):
        Manifest.from_json(json.dumps(body).encode())
