"""Check a user's VTAB-1k folder before anything is computed from it, and say all that is wrong."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from benchmarks.vtab.dataset import Dataset
from benchmarks.vtab.lists import (
    Entry,
    Expected,
    FolderError,
    ImageList,
    ListName,
    Problem,
    read_list,
)
from core.catalog.recipes import DatasetRecipe
from core.ml.data.preprocess import ImageError, decode_image

_SAMPLE = 8
_SHOWN_LABELS = 12


class Decoding(StrEnum):
    """How many images the check opens."""

    NONE = "none"
    SAMPLE = "sample"  #: a few of every list, evenly spread, its first and last among them
    ALL = "all"


def check_root(
    root: Path,
    recipes: Iterable[DatasetRecipe],
    *,
    expected: Expected = Expected(),  # noqa: B008 - frozen
    decoding: Decoding = Decoding.SAMPLE,
    say: Callable[[str], None] = lambda _line: None,
) -> list[Dataset]:
    """Look at every dataset's folder; problems are returned, not raised.

    Args:
        root: the folder that holds the datasets' folders.
        recipes: the datasets that must be there.
        expected: sizes.
        decoding: how many images are opened.
        say: takes a line of progress.

    Raises:
        FolderError: `root` itself is not there, or holds none of the datasets.
    """
    wanted = list(recipes)
    if not root.is_dir():
        raise FolderError([Problem(str(root), "there is no such folder")])
    present = [recipe for recipe in wanted if (root / recipe.folder).is_dir()]
    if not present:
        raise FolderError([Problem(str(root), _explain_empty(root, wanted))])
    datasets = []
    for recipe in wanted:
        say(f"checking {recipe.folder}")
        if recipe in present:
            datasets.append(_check_dataset(root, recipe, expected, decoding))
        else:
            problems: tuple[Problem, ...] = (Problem(recipe.folder, "the folder is missing"),)
            if recipe.folder == next(r.folder for r in wanted if r not in present):
                names = " ".join(found.code_name for found in present)
                message = (
                    f"{len(wanted) - len(present)} of {len(wanted)} datasets are missing; to use "
                    f"those that are there: --datasets {names}"
                )
                problems = (Problem(str(root), message), *problems)
            folder = root / recipe.folder
            datasets.append(
                Dataset(recipe, folder, expected.classes(recipe), {}, {}, problems=problems)
            )
    return datasets


def require_usable(datasets: Iterable[Dataset]) -> None:
    """Raise for everything fatal at once.

    Raises:
        FolderError: with the problems of all datasets.
    """
    fatal = [problem for each in datasets for problem in each.problems if problem.is_fatal]
    if fatal:
        raise FolderError(fatal)


def _explain_empty(root: Path, wanted: Sequence[DatasetRecipe]) -> str:
    folders = [recipe.folder for recipe in wanted]
    inner = [
        child.name
        for child in sorted(root.iterdir())
        if child.is_dir() and any((child / folder).is_dir() for folder in folders)
    ]
    hint = f"; did you mean {root / inner[0]}?" if inner else ""
    return f"none of the folders {', '.join(folders)} is in it{hint}"


def _check_dataset(
    root: Path, recipe: DatasetRecipe, expected: Expected, decoding: Decoding
) -> Dataset:
    folder = root / recipe.folder
    check = _Check(folder, recipe, expected.classes(recipe))
    for name in ListName:
        check.read(name, lines=expected.lines(name, recipe))
    check.compare()
    first_images = check.open_images(decoding)
    return Dataset(
        recipe, folder, check.num_classes, check.lists, first_images, tuple(check.problems)
    )


class _Check:
    """The check of one dataset, which collects what it finds."""

    def __init__(self, folder: Path, recipe: DatasetRecipe, num_classes: int) -> None:
        self.folder, self.recipe, self.num_classes = folder, recipe, num_classes
        self.lists: dict[ListName, ImageList] = {}
        self.problems: list[Problem] = []
        self._unreadable: set[tuple[ListName, int]] = set()
        self._listings: dict[str, dict[str, bool]] = {}
        self._resolved = folder.resolve()

    def add(
        self, name: ListName, message: str, line: int | None = None, *, is_fatal: bool = True
    ) -> None:
        shown = f"{self.recipe.folder}/{name.file_name}"
        self.problems.append(Problem(shown, message, line, is_fatal=is_fatal))

    def read(self, name: ListName, *, lines: int) -> None:
        path = self.folder / name.file_name
        if not path.is_file():
            self.add(name, "the list is missing")
            return
        found, problems = read_list(path, name, shown=f"{self.recipe.folder}/{name.file_name}")
        self.lists[name] = found
        self.problems += problems
        count = len(found.entries) + len(problems)
        if count != lines:
            self.add(name, f"it has {count} lines, VTAB-1k has {lines}")
        seen: dict[str, int] = {}
        for entry in found.entries:
            if entry.label >= self.num_classes:
                self.add(
                    name,
                    f"label {entry.label} is out of range: {self.recipe.name} has "
                    f"{self.num_classes} classes, 0 to {self.num_classes - 1}",
                    entry.line,
                )
            if entry.path in seen:
                self.add(name, f"{entry.path} is on line {seen[entry.path]} already", entry.line)
            seen[entry.path] = entry.line
            self._find_file(name, entry)

    def compare(self) -> None:
        """Check the lists against each other."""
        counts = {
            name: Counter(entry.label for entry in found.entries)
            for name, found in self.lists.items()
        }
        for name in (ListName.TRAIN, ListName.TRAIN_VAL):
            if name in counts:
                absent = [k for k in range(self.num_classes) if k not in counts[name]]
                if absent:
                    self.add(name, f"no image of {_show_labels(absent)}", is_fatal=False)
        if {ListName.TRAIN, ListName.VAL, ListName.TRAIN_VAL} <= counts.keys():
            together = counts[ListName.TRAIN] + counts[ListName.VAL]
            differing = sorted(
                k
                for k in together.keys() | counts[ListName.TRAIN_VAL].keys()
                if together[k] != counts[ListName.TRAIN_VAL][k]
            )
            if differing:
                self.add(
                    ListName.TRAIN_VAL,
                    "it should hold the images of train800 and val200, but has other numbers of "
                    f"{_show_labels(differing)}",
                    is_fatal=False,
                )
        self._compare_with_test()

    def _compare_with_test(self) -> None:
        if ListName.TEST not in self.lists:
            return
        tested = {entry.path for entry in self.lists[ListName.TEST].entries}
        for name in (ListName.TRAIN, ListName.VAL, ListName.TRAIN_VAL):
            for entry in self.lists[name].entries if name in self.lists else ():
                if entry.path in tested:
                    self.add(name, f"{entry.path} is a test image as well", entry.line)

    def open_images(self, decoding: Decoding) -> dict[ListName, str]:
        """Decode the images that were asked for; return the digest of each list's first one."""
        first_images: dict[ListName, str] = {}
        for name, found in self.lists.items():
            readable = [e for e in found.entries if (name, e.line) not in self._unreadable]
            for entry in _pick(readable, decoding):
                try:
                    decode_image((self.folder / entry.path).read_bytes())
                except (ImageError, OSError) as error:
                    reason = error.message if isinstance(error, ImageError) else str(error)
                    self.add(name, f"{entry.path}: {reason}", entry.line)
            if readable and readable[0] is found.entries[0]:
                content = (self.folder / readable[0].path).read_bytes()
                first_images[name] = hashlib.sha256(content).hexdigest()
        return first_images

    def _find_file(self, name: ListName, entry: Entry) -> None:
        """Note an image that is not there, or lies behind a link that leaves the folder."""
        parent, _, file_name = entry.path.rpartition("/")
        if parent not in self._listings:
            self._listings[parent] = _list_files(self.folder / parent, inside=self._resolved)
        is_inside = self._listings[parent].get(file_name)
        if is_inside:
            return
        self._unreadable.add((name, entry.line))
        reason = (
            "is not there" if is_inside is None else "is a link that leaves the dataset's folder"
        )
        self.add(name, f"{entry.path} {reason}", entry.line)


def _list_files(folder: Path, *, inside: Path) -> dict[str, bool]:
    """Return the files of a folder, each with whether it lies below `inside`, links followed.

    One listing instead of a question for each of up to 73,728 images.
    """
    if not folder.is_dir():
        return {}
    is_inside = folder.resolve().is_relative_to(inside)
    with os.scandir(folder) as children:
        return {
            child.name: (
                Path(child.path).resolve().is_relative_to(inside)
                if child.is_symlink()
                else is_inside
            )
            for child in children
            if child.is_file()
        }


def _pick(entries: Sequence[Entry], decoding: Decoding) -> list[Entry]:
    if decoding is Decoding.ALL or len(entries) <= _SAMPLE:
        return [] if decoding is Decoding.NONE else list(entries)
    if decoding is Decoding.NONE:
        return []
    last = len(entries) - 1
    return [entries[round(k * last / (_SAMPLE - 1))] for k in range(_SAMPLE)]


def _show_labels(labels: Sequence[int]) -> str:
    shown = ", ".join(str(label) for label in labels[:_SHOWN_LABELS])
    more = f" and {len(labels) - _SHOWN_LABELS} more" if len(labels) > _SHOWN_LABELS else ""
    return f"class{'es' if len(labels) > 1 else ''} {shown}{more}"
