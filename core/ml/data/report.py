"""The validation report: what a dataset holds, what is wrong with it and what to do about it.

Errors make a dataset invalid and concern one image each; warnings do not.

    warnings   exact_duplicate · cross_split_duplicate · conflicting_label_duplicate · few_images ·
               class_imbalance · class_missing_in_split · no_test_split · label_collision ·
               empty_class · ignored_files · and the conversions of `preprocess.Conversion`
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from core.ml.data.manifest import Manifest, ManifestItem
from core.ml.data.preprocess import Conversion, ImageError
from core.types import Split

REPORT_VERSION = 1
#: Issues listed of each code; `count` in the report says how many there are.
MAX_LISTED = 100
#: Below it a class learns, but its validation accuracy is a matter of chance.
FEW_IMAGES = 10
#: Largest class over smallest; beyond it the small class is hardly ever seen.
IMBALANCE = 100
_SIDE_BOUNDS_PX = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Issue:
    """One finding.

    Attributes:
        code: stable machine-readable name.
        severity: `error` or `warning`.
        message: what was found.
        hint: what to do about it.
        path: the image, None where it concerns more than one.
        count: how many images it concerns.
    """

    code: str
    severity: str
    message: str
    hint: str
    path: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What was found out about one image while it was decoded."""

    name: str
    sha256: str
    size_bytes: int
    format: str
    width: int
    height: int
    conversions: frozenset[Conversion]


@dataclass
class Report:
    """Findings in the making, and their JSON form."""

    summary: dict[str, Any] = field(default_factory=dict)
    errors: list[Issue] = field(default_factory=list)
    warnings: list[Issue] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data, at most `MAX_LISTED` findings of each code."""
        return {
            "version": REPORT_VERSION,
            "summary": self.summary,
            "counts": dict(Counter(issue.code for issue in self.errors + self.warnings)),
            "errors": _listed(self.errors),
            "warnings": _listed(self.warnings),
        }


def image_error(path: str, error: ImageError) -> Issue:
    """Return the finding that an image cannot be decoded."""
    return Issue(error.code, "error", error.cause, error.hint, path)


def warn(code: str, message: str, hint: str, *, path: str | None = None, count: int = 1) -> Issue:
    """Return a finding that does not make the dataset invalid."""
    return Issue(code, "warning", message, hint, path, count)


def summarise_files(facts: Sequence[ImageFacts]) -> dict[str, Any]:
    """Return the histograms of formats and sizes of the images that could be decoded."""
    sides = Counter(_side_bucket(min(f.width, f.height)) for f in facts)
    order = [_side_bucket(bound - 1) for bound in _SIDE_BOUNDS_PX]
    order.append(_side_bucket(_SIDE_BOUNDS_PX[-1]))
    return {
        "images": len(facts),
        "bytes": sum(f.size_bytes for f in facts),
        "formats": dict(sorted(Counter(f.format for f in facts).items())),
        "shorter_side_px": {bucket: sides[bucket] for bucket in order if sides[bucket]},
    }


def summarise_splits(manifest: Manifest) -> dict[str, Any]:
    """Return the counts of images by split and by class and split."""
    counts = manifest.counts()
    totals = {split.value: sum(row[split] for row in counts.values()) for split in Split}
    per_class = {name: {s.value: n for s, n in row.items()} for name, row in counts.items()}
    return {"classes": len(manifest.classes), "splits": totals, "per_class": per_class}


def find_conversions(facts: Iterable[ImageFacts]) -> list[Issue]:
    """Return one warning for each kind of conversion that was needed."""
    examples: dict[Conversion, str] = {}
    counts: Counter[Conversion] = Counter()
    for fact in facts:
        for conversion in fact.conversions:
            counts[conversion] += 1
            examples.setdefault(conversion, fact.name)
    return [
        warn(
            kind.value,
            f"{counts[kind]} image(s) were converted ({kind.value})",
            "nothing, unless the pictures rely on it: prediction converts in the same way",
            path=examples[kind],
            count=counts[kind],
        )
        for kind in sorted(counts)
    ]


def find_duplicates(manifest: Manifest) -> list[Issue]:
    """Return a warning for each set of images with equal bytes, the worst reason only."""
    groups: defaultdict[str, list[ManifestItem]] = defaultdict(list)
    for item in manifest.items:
        groups[item.sha256].append(item)
    issues = []
    for group in groups.values():
        if len(group) == 1:
            continue
        names = ", ".join(item.name for item in group[:3])
        if len({item.label for item in group}) > 1:
            code, hint = "conflicting_label_duplicate", "keep it in the right class only"
            what = "one image carries different labels"
        elif len({item.split for item in group}) > 1:
            code, hint = "cross_split_duplicate", "remove the copies: they flatter the accuracy"
            what = "one image is in several splits"
        else:
            code, hint, what = "exact_duplicate", "remove the copies", "one image is there twice"
        issues.append(warn(code, f"{what}: {names}", hint, path=group[0].name, count=len(group)))
    return issues


def find_thin_classes(manifest: Manifest) -> list[Issue]:
    """Return warnings about classes with few or no images in a split, and about imbalance."""
    counts = manifest.counts()
    issues = []
    for name, row in counts.items():
        if row[Split.TRAIN] < FEW_IMAGES:
            message = f"class {name!r} trains on {row[Split.TRAIN]} image(s)"
            issues.append(
                warn("few_images", message, f"add images, at least {FEW_IMAGES}", path=name)
            )
    for split in (Split.VAL, Split.TEST):
        missing = [name for name, row in counts.items() if not row[split]]
        if missing and len(missing) < len(counts):
            shown = ", ".join(repr(name) for name in missing[:5])
            message = f"{len(missing)} class(es) have no image in {split.value}: {shown}"
            hint = "add images: their accuracy cannot be told"
            issues.append(warn("class_missing_in_split", message, hint, count=len(missing)))
    sizes = [row[Split.TRAIN] for row in counts.values()]
    if max(sizes) > IMBALANCE * min(sizes):
        message = f"the largest class has {max(sizes)} training images, the smallest {min(sizes)}"
        issues.append(warn("class_imbalance", message, "add images to the small classes"))
    if not len(manifest.indices(Split.TEST)):
        message = "there is no test split: the final accuracy can only be told on validation"
        issues.append(warn("no_test_split", message, "add test/, or drop all split folders"))
    return issues


def find_label_collisions(classes: Iterable[str]) -> list[Issue]:
    """Return a warning for class names that differ only in case or Unicode form."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[unicodedata.normalize("NFKC", name).casefold().strip()].append(name)
    return [
        warn(
            "label_collision",
            f"these are different classes: {', '.join(map(repr, group))}",
            "name the folders alike if they are one class",
            count=len(group),
        )
        for group in groups.values()
        if len(group) > 1
    ]


def _listed(issues: Iterable[Issue]) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    listed = []
    for issue in issues:
        seen[issue.code] += 1
        if seen[issue.code] <= MAX_LISTED:
            listed.append(asdict(issue))
    return listed


def _side_bucket(side_px: int) -> str:
    lower = 0
    for bound in _SIDE_BOUNDS_PX:
        if side_px < bound:
            return f"{lower}-{bound - 1}"
        lower = bound
    return f"{lower}+"
