"""From member paths to splits and classes: the ImageFolder layouts.

    class/*.jpg                              no splits
    train/class/*.jpg, val/…, test/…         splits, also by the other names of `SPLIT_FOLDERS`

Folders around it all and further folders below a class are fine. Litter is skipped; other files
are counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.platform.datasets.archive.entries import ArchiveEntry, ArchiveError, Member, shown
from core.platform.datasets.archive.names import collision_key, is_image, is_litter, normal_label
from core.types import Split

#: Looked up in any case.
SPLIT_FOLDERS = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "val": Split.VAL,
    "valid": Split.VAL,
    "validation": Split.VAL,
    "test": Split.TEST,
    "testing": Split.TEST,
}
MIN_CLASSES = 2

_LAYOUTS = "class/image.jpg or train/class/image.jpg, val/class/…, test/class/…"
_SHOWN_CLASSES = 5


@dataclass(frozen=True)
class Layout:
    """How an archive is laid out.

    Attributes:
        entries: the images, in the archive's order.
        classes: class names, sorted.
        has_splits: whether folders name the splits.
        ignored_files: files that are neither images nor litter.
        empty_classes: class folders without any image, sorted.
    """

    entries: tuple[ArchiveEntry, ...]
    classes: tuple[str, ...]
    has_splits: bool
    ignored_files: int
    empty_classes: tuple[str, ...]


def read_layout(members: Sequence[Member]) -> Layout:
    """Return which images belong to which class and split.

    Raises:
        ArchiveError: when the paths allow no reading, or more than one.
    """
    files, images = _find_images(members, wanted=_LAYOUTS)
    skip = _wrapper_depth([m.name.split("/") for m in images])
    paths = [m.name.split("/")[skip:] for m in images]
    has_splits = _has_splits(images, paths)
    class_at = 1 if has_splits else 0
    entries = []
    for member, parts in zip(images, paths, strict=True):
        if len(parts) < class_at + 2:
            raise ArchiveError(
                f"{shown(member.name)} lies in no class folder. Expected: {_LAYOUTS}.",
                code="images_outside_class_folders",
            )
        split = SPLIT_FOLDERS[parts[0].casefold()] if has_splits else None
        label = normal_label(parts[class_at])
        entries.append(ArchiveEntry(member.name, split, label, member.size_bytes, member.index))
    classes = tuple(sorted({entry.class_name for entry in entries}))
    if len(classes) < MIN_CLASSES:
        raise ArchiveError(
            f"All images are of one class, {shown(classes[0])}: put the images of at least "
            f"{MIN_CLASSES} classes into folders of their own. Expected: {_LAYOUTS}.",
            code="too_few_classes",
        )
    if has_splits:
        _check_split_labels(entries)
    folders = (
        m.name.split("/")[skip:]
        for m in members
        if m.is_folder and m.name and not is_litter(m.name)  # "." itself has no name
    )
    return Layout(
        entries=tuple(entries),
        classes=classes,
        has_splits=has_splits,
        ignored_files=len(files) - len(images),
        empty_classes=_empty_classes(folders, class_at, classes, has_splits=has_splits),
    )


def read_pictures(members: Sequence[Member]) -> Layout:
    """Return all images, in whatever folders they lie: the layout of what has no labels.

    Raises:
        ArchiveError: when there is no image, or two share a name.
    """
    files, images = _find_images(members, wanted="images, in any folders or none")
    entries = tuple(ArchiveEntry(m.name, None, "", m.size_bytes, m.index) for m in images)
    return Layout(entries, (), False, len(files) - len(images), ())  # noqa: FBT003 - no splits


def _find_images(members: Sequence[Member], *, wanted: str) -> tuple[list[Member], list[Member]]:
    """Return the files that are no litter, and the images among them."""
    if not members:
        raise ArchiveError(f"The archive is empty. Expected: {wanted}.", code="archive_empty")
    files = [m for m in members if not m.is_folder and not is_litter(m.name)]
    images = [m for m in files if is_image(m.name)]
    if not images:
        raise ArchiveError(
            f"The archive holds no images (JPEG, PNG, WebP or BMP). Expected: {wanted}.",
            code="no_images",
        )
    _refuse_duplicates(images)
    return files, images


def _refuse_duplicates(images: Iterable[Member]) -> None:
    seen: dict[str, str] = {}
    for member in images:
        key = collision_key(member.name)
        if key in seen:
            raise ArchiveError(
                f"{shown(seen[key])} and {shown(member.name)} are the same name, or differ only in "
                "case or Unicode form: rename one of them (or its folder).",
                code="duplicate_name",
            )
        seen[key] = member.name


def _wrapper_depth(paths: Sequence[Sequence[str]]) -> int:
    """Return how many folders lie around all images and are neither a split nor a class."""
    depth = 0
    # `name/image.jpg` only: the one folder is a class, and an error that is told better as such.
    while any(len(parts) > depth + 2 for parts in paths):
        names = {parts[depth] if len(parts) > depth + 1 else None for parts in paths}
        name = names.pop()
        if names or name is None or name.casefold() in SPLIT_FOLDERS:
            break
        depth += 1
    return depth


def _has_splits(images: Sequence[Member], paths: Sequence[Sequence[str]]) -> bool:
    inside = [parts[0].casefold() in SPLIT_FOLDERS and len(parts) > 1 for parts in paths]
    if not any(inside):
        return False
    if all(inside):
        return True
    # A class may be called "train" (beside "car"): then its images lie right inside it.
    deep = [i for i, parts in enumerate(paths) if inside[i] and len(parts) > 2]  # noqa: PLR2004
    if not deep:
        return False
    outside = inside.index(False)
    raise ArchiveError(
        f"{shown(images[deep[0]].name)} lies in a split folder, {shown(images[outside].name)} does "
        "not: put all images under train/, val/ and test/, or none.",
        code="mixed_layout",
    )


def _check_split_labels(entries: Sequence[ArchiveEntry]) -> None:
    by_split: dict[Split, set[str]] = {}
    for entry in entries:
        assert entry.split is not None
        by_split.setdefault(entry.split, set()).add(entry.class_name)
    if Split.TRAIN not in by_split:
        raise ArchiveError(
            "The archive has split folders but no train/: add it, or drop the split folders to "
            "have the images split here.",
            code="no_train_split",
        )
    for split in (Split.VAL, Split.TEST):
        unknown = sorted(by_split.get(split, set()) - by_split[Split.TRAIN])
        if unknown:
            names = ", ".join(shown(name) for name in unknown[:_SHOWN_CLASSES])
            raise ArchiveError(
                f"{split.value}/ has {len(unknown)} class(es) that train/ has not ({names}): "
                "name the folders alike, or add training images.",
                code="split_label_mismatch",
            )


def _empty_classes(
    folders: Iterable[Sequence[str]], class_at: int, classes: Sequence[str], *, has_splits: bool
) -> tuple[str, ...]:
    named = {
        normal_label(parts[class_at])
        for parts in folders
        if len(parts) == class_at + 1 and (not has_splits or parts[0].casefold() in SPLIT_FOLDERS)
    }
    return tuple(sorted(named - set(classes)))
