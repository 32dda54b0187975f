"""A dataset's folder as it was found, and the names that datasets go by."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.vtab.lists import ImageList, ListName, Problem
from core.catalog.recipes import DATASET_RECIPES, DatasetRecipe
from core.errors import InvalidError


@dataclass(frozen=True)
class Dataset:
    """One dataset's folder as it was found.

    Attributes:
        recipe: which dataset.
        folder: where it lies.
        num_classes: outputs of a head.
        lists: those that could be read.
        first_images: SHA-256 (hex) of the first image of each list.
        problems: what is wrong, warnings included.
    """

    recipe: DatasetRecipe
    folder: Path
    num_classes: int
    lists: Mapping[ListName, ImageList]
    first_images: Mapping[ListName, str]
    problems: tuple[Problem, ...]

    @property
    def is_usable(self) -> bool:
        """Whether nothing fatal was found."""
        return not any(problem.is_fatal for problem in self.problems)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the lists and of their first images.

        The images of this folder format are JPEG copies, and copies from different sources differ
        in quality by many points of accuracy: two results are of the same data only if this says
        so.
        """
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return what the digest is made of."""
        return {
            name.value: {
                "lines": len(found.entries),
                "list_sha256": found.sha256,
                "first_image_sha256": self.first_images.get(name),
            }
            for name, found in sorted(self.lists.items())
        }

    def shown(self, name: ListName) -> str:
        """Return what messages call a list."""
        return f"{self.recipe.folder}/{name.file_name}"


def find_recipes(names: Sequence[str] | None) -> list[DatasetRecipe]:
    """Return the datasets of these names, in the paper's order; all 19 for None.

    A name is a recipe's, with or without `vtab-`, or a folder's.

    Raises:
        InvalidError: for a name that is none of them.
    """
    if names is None:
        return list(DATASET_RECIPES.values())
    known = {
        alias: recipe
        for recipe in DATASET_RECIPES.values()
        for alias in (recipe.folder, recipe.code_name, recipe.name)
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        allowed = ", ".join(recipe.code_name for recipe in DATASET_RECIPES.values())
        raise InvalidError(f"there is no dataset {unknown[0]!r} in VTAB-1k; allowed: {allowed}")
    wanted = {known[name].name for name in names}
    return [recipe for recipe in DATASET_RECIPES.values() if recipe.name in wanted]
