"""The lists of a VTAB-1k dataset: `images/<split>/<name>.jpg <label>`, one image a line."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.catalog.recipes import DatasetRecipe
from core.errors import InvalidError

_LABEL = re.compile(r"[0-9]{1,6}")
_SHOWN_PROBLEMS = 8


class ListName(StrEnum):
    """The four lists of a dataset; the value is the file's name without its ending."""

    TRAIN = "train800"  #: what settings are tried on
    VAL = "val200"  #: what settings are chosen on
    TRAIN_VAL = "train800val200"  #: both together, with image files of their own
    TEST = "test"  #: what is reported

    @property
    def file_name(self) -> str:
        """The list's file name."""
        return f"{self.value}.txt"


@dataclass(frozen=True)
class Expected:
    """The sizes that a folder must have; those of VTAB-1k unless said otherwise.

    Attributes:
        train: lines of `train800.txt`.
        val: lines of `val200.txt`.
        train_val: lines of `train800val200.txt`.
        test: lines of `test.txt`; None takes the recipe's.
        num_classes: labels run from 0 to this minus one; None takes the recipe's.
    """

    train: int = 800
    val: int = 200
    train_val: int = 1000
    test: int | None = None
    num_classes: int | None = None

    def lines(self, name: ListName, recipe: DatasetRecipe) -> int:
        """Return how many lines a list of a dataset must have."""
        return {
            ListName.TRAIN: self.train,
            ListName.VAL: self.val,
            ListName.TRAIN_VAL: self.train_val,
            ListName.TEST: recipe.test_images if self.test is None else self.test,
        }[name]

    def classes(self, recipe: DatasetRecipe) -> int:
        """Return how many classes a dataset must have."""
        return recipe.num_classes if self.num_classes is None else self.num_classes


@dataclass(frozen=True)
class Problem:
    """Something wrong with the folder.

    Attributes:
        file: path below the root, of a list or of a folder.
        message: what is wrong, and what to do.
        line: number from 1; None where the whole file is meant.
        is_fatal: whether nothing can be run because of it.
    """

    file: str
    message: str
    line: int | None = None
    is_fatal: bool = True

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.message}"


class FolderError(InvalidError):
    """The folder is not the VTAB-1k that it should be.

    Attributes:
        problems: everything that was found, not only what the message shows.
    """

    code = "invalid_vtab_folder"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(describe_problems(self.problems)))


@dataclass(frozen=True)
class Entry:
    """One line of a list.

    Attributes:
        path: relative to the dataset's folder, with forward slashes.
        label: from 0.
        line: number from 1.
    """

    path: str
    label: int
    line: int


@dataclass(frozen=True)
class ImageList:
    """A list that was read.

    Attributes:
        name: which.
        entries: its lines in order, those left out that cannot be read.
        sha256: of the file's bytes, in hex.
    """

    name: ListName
    entries: tuple[Entry, ...]
    sha256: str

    def labels(self) -> NDArray[np.int64]:
        """Return the labels in order, shape (entries,)."""
        return np.array([entry.label for entry in self.entries], np.int64)


def read_list(path: Path, name: ListName, *, shown: str) -> tuple[ImageList, list[Problem]]:
    """Read a list; return it with a problem for each line that cannot be understood.

    Args:
        path: the file.
        name: which list it is.
        shown: what problems call the file.
    """
    content = path.read_bytes()
    problems: list[Problem] = []
    entries = []
    for number, raw in enumerate(content.splitlines(), start=1):
        try:
            entries.append(_parse(raw.decode(), number))
        except ValueError as error:  # UnicodeDecodeError is one
            reason = "is not UTF-8" if isinstance(error, UnicodeError) else str(error)
            problems.append(Problem(shown, reason, number))
    return ImageList(name, tuple(entries), hashlib.sha256(content).hexdigest()), problems


def describe_problems(problems: Iterable[Problem]) -> list[str]:
    """Return a line for each problem; of many in one file, the first ones and how many there are.

    A list that lost its images would otherwise print tens of thousands of lines.
    """
    by_file: dict[str, list[Problem]] = {}
    for problem in problems:
        by_file.setdefault(problem.file, []).append(problem)
    lines = []
    for file, found in by_file.items():
        lines += [str(problem) for problem in found[:_SHOWN_PROBLEMS]]
        if len(found) > _SHOWN_PROBLEMS:
            lines.append(f"{file}: and {len(found) - _SHOWN_PROBLEMS} more problems like these")
    return lines


def _parse(text: str, number: int) -> Entry:
    path, separator, label = text.rpartition(" ")
    if not separator or not path.strip():
        raise ValueError(f"{text!r} is not 'images/<split>/<name>.jpg <label>'")
    if not _LABEL.fullmatch(label):
        raise ValueError(f"the label {label!r} is not a whole number from 0")
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or "\0" in path or not {"..", ""}.isdisjoint(parts):
        raise ValueError(f"the path {path!r} leaves the dataset's folder or is absolute")
    return Entry(path, int(label), number)
