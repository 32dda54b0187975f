"""Which image trains, which chooses the epoch, which is looked at once.

* **No splits given, or train/ alone:** each class is cut 70 / 15 / 15 into train / val / test.
* **train and test given:** 20 % of each class of train become val.
* **train and val given:** taken as they are; test stays empty and the report says so.
* **all three given:** taken as they are.

Small classes: a class with one image trains; with two it has one in train and one in val; from
three images on every part has at least one. Copies of one image within a class stay together, or
test would show what train has seen.

The choice depends on the seed and the names alone, never on the order in which the files came:
images are ranked by a hash, which also means that one image more moves few others.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from core.types import Split

VAL_FRACTION = 0.15
TEST_FRACTION = 0.15
CARVED_VAL_FRACTION = 0.20


@dataclass(frozen=True, slots=True)
class SplitItem:
    """One image to be placed.

    Attributes:
        name: unique in the dataset.
        label: class index.
        group: equal for copies of one image (its SHA-256).
        split: where the archive puts it, None where it does not say.
    """

    name: str
    label: int
    group: str
    split: Split | None = None


def assign_splits(items: Sequence[SplitItem], *, seed: int) -> list[Split]:
    """Return the split of each item, in the order given.

    Args:
        items: all images of a dataset; either each has a split or none has.
        seed: the dataset's seed.

    Raises:
        ValueError: when only some items have a split.
    """
    given = {item.split for item in items}
    if None in given and len(given) > 1:
        raise ValueError("either every item has a split or none has")
    if given <= {None, Split.TRAIN}:
        return _place(items, seed, val=VAL_FRACTION, test=TEST_FRACTION)
    if Split.VAL in given:
        return [item.split for item in items if item.split is not None]
    train = [index for index, item in enumerate(items) if item.split is Split.TRAIN]
    carved = _place([items[i] for i in train], seed, val=CARVED_VAL_FRACTION, test=0.0)
    splits = [Split.TEST] * len(items)
    for index, split in zip(train, carved, strict=True):
        splits[index] = split
    return splits


def _place(items: Sequence[SplitItem], seed: int, *, val: float, test: float) -> list[Split]:
    """Return a stratified placement; `val` and `test` are fractions of each class."""
    groups: defaultdict[int, defaultdict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, item in enumerate(items):
        groups[item.label][item.group].append(index)
    splits = [Split.TRAIN] * len(items)
    for of_class in groups.values():
        total = sum(map(len, of_class.values()))
        left = _quotas(total, val=val, test=test)
        ranked = sorted(
            of_class.values(), key=lambda members: _rank(seed, min(items[i].name for i in members))
        )
        # The first group always trains, however large it is.
        for members in ranked[1:]:
            split = next((s for s, quota in left.items() if len(members) <= quota), Split.TRAIN)
            if split is not Split.TRAIN:
                left[split] -= len(members)
            for index in members:
                splits[index] = split
    return splits


def _quotas(total: int, *, val: float, test: float) -> dict[Split, int]:
    """Return how many of a class's `total` images validate and test, val first."""
    in_val = max(1, round(val * total)) if total > 1 else 0
    in_test = max(1, round(test * total)) if test and total > 2 else 0  # noqa: PLR2004 - 1 each
    return {Split.VAL: in_val, Split.TEST: in_test}


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()
