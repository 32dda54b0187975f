"""The report: which findings, and which is the worst of several."""

import pytest

from core.ml.data.manifest import Manifest, ManifestItem, build_manifest
from core.ml.data.preprocess import Conversion, ImageError
from core.ml.data.report import (
    MAX_LISTED,
    ImageFacts,
    Report,
    find_conversions,
    find_duplicates,
    find_label_collisions,
    find_thin_classes,
    image_error,
    summarise_files,
    summarise_splits,
    warn,
)
from core.types import Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def manifest(*rows: tuple[str, int, Split], classes: tuple[str, ...] = ("a", "b")) -> Manifest:
    """Build a manifest from (content, label, split) rows."""
    items = [
        ManifestItem(f"{n:05}.png", label, split, content, 9, 9)
        for n, (content, label, split) in enumerate(rows)
    ]
    return build_manifest(classes, items, seed=0, preprocess_version=1)


def facts(name: str, *conversions: Conversion, width: int = 50, height: int = 40) -> ImageFacts:
    return ImageFacts(name, "0", 10, "PNG", width, height, frozenset(conversions))


class TestDuplicates:
    @pytest.mark.parametrize(
        ("code", "second"),
        [
            ("exact_duplicate", ("x", 0, TRAIN)),
            ("cross_split_duplicate", ("x", 0, TEST)),
            ("conflicting_label_duplicate", ("x", 1, TRAIN)),
            ("conflicting_label_duplicate", ("x", 1, TEST)),
        ],
    )
    def test_the_worst_reason_is_told(self, code: str, second: tuple[str, int, Split]) -> None:
        found = find_duplicates(manifest(("x", 0, TRAIN), ("y", 1, TRAIN), second))
        assert [(issue.code, issue.count) for issue in found] == [(code, 2)]
        assert "00000.png, 00002.png" in found[0].message

    def test_different_images_are_none(self) -> None:
        assert find_duplicates(manifest(("x", 0, TRAIN), ("y", 0, TRAIN))) == []


class TestThinClasses:
    def test_few_images_and_imbalance(self) -> None:
        rows = [(f"x{n}", 0, TRAIN) for n in range(202)] + [(f"y{n}", 1, TRAIN) for n in range(2)]
        rows += [("v", 0, VAL), ("w", 1, VAL), ("t", 0, TEST), ("u", 1, TEST)]
        found = {issue.code: issue for issue in find_thin_classes(manifest(*rows))}
        assert set(found) == {"few_images", "class_imbalance"}
        assert found["few_images"].path == "b"

    def test_a_class_that_is_not_validated(self) -> None:
        rows = [(f"x{n}", n % 2, TRAIN) for n in range(30)]
        rows += [("v", 0, VAL), ("t", 0, TEST), ("u", 1, TEST)]
        (issue,) = find_thin_classes(manifest(*rows))
        assert issue.code == "class_missing_in_split"
        assert "no image in val: 'b'" in issue.message

    def test_no_test_split(self) -> None:
        rows = [(f"x{n}", n % 2, TRAIN) for n in range(30)] + [("v", 0, VAL), ("w", 1, VAL)]
        assert [issue.code for issue in find_thin_classes(manifest(*rows))] == ["no_test_split"]


def test_label_collisions() -> None:
    (issue,) = find_label_collisions(["Cat", "cat", "cat ", "dog"])
    assert (issue.code, issue.count) == ("label_collision", 3)


def test_conversions_are_counted_with_an_example() -> None:
    found = find_conversions(
        [facts("a", Conversion.ALPHA), facts("b", Conversion.ALPHA, Conversion.ROTATED), facts("c")]
    )
    assert {(issue.code, issue.count, issue.path) for issue in found} == {
        ("alpha_on_white", 2, "a"),
        ("exif_rotation", 1, "b"),
    }


def test_histogram_of_the_shorter_side() -> None:
    sizes = [(31, 900), (32, 32), (63, 70), (5000, 4096)]
    summary = summarise_files([facts("x", width=w, height=h) for w, h in sizes])
    assert summary["shorter_side_px"] == {"0-31": 1, "32-63": 2, "4096+": 1}
    assert summary["formats"] == {"PNG": 4}
    assert summary["bytes"] == 40


def test_counts_by_class_and_split() -> None:
    summary = summarise_splits(manifest(("x", 0, TRAIN), ("y", 1, TRAIN), ("z", 1, TEST)))
    assert summary["splits"] == {"train": 2, "val": 0, "test": 1}
    assert summary["per_class"]["b"] == {"train": 1, "val": 0, "test": 1}


def test_long_lists_are_cut_but_counted() -> None:
    report = Report()
    cut = ImageError("It is cut", "send it again", code="image_truncated")
    report.errors = [image_error(f"{n}.jpg", cut) for n in range(MAX_LISTED + 20)]
    report.errors.append(
        image_error("x.gif", ImageError("No", "convert", code="unsupported_format"))
    )
    report.warnings = [warn("empty_class", "none", "add")]
    body = report.to_json()
    assert len(body["errors"]) == MAX_LISTED + 1
    assert body["counts"] == {
        "image_truncated": MAX_LISTED + 20,
        "unsupported_format": 1,
        "empty_class": 1,
    }
    assert body["errors"][0] == {
        "code": "image_truncated",
        "severity": "error",
        "message": "It is cut",
        "hint": "send it again",
        "path": "0.jpg",
        "count": 1,
    }
