"""Splits: proportions, small classes, independence of the order, copies that stay together."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ml.data.splits import SplitItem, assign_splits
from core.types import Split

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def items_of(*class_sizes: int, split: Split | None = None, prefix: str = "") -> list[SplitItem]:
    return [
        SplitItem(f"{prefix}{label}/{n}.png", label, f"{prefix}{label}-{n}", split)
        for label, size in enumerate(class_sizes)
        for n in range(size)
    ]


def counts(items: list[SplitItem], *, seed: int = 0) -> dict[int, tuple[int, int, int]]:
    table = Counter(
        (item.label, split)
        for item, split in zip(items, assign_splits(items, seed=seed), strict=True)
    )
    labels = sorted({item.label for item in items})
    return {label: (table[label, TRAIN], table[label, VAL], table[label, TEST]) for label in labels}


class TestWithoutSplits:
    def test_each_class_is_cut_70_15_15(self) -> None:
        assert counts(items_of(100, 20, 40)) == {0: (70, 15, 15), 1: (14, 3, 3), 2: (28, 6, 6)}

    @pytest.mark.parametrize(
        ("size", "expected"),
        [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (4, (2, 1, 1)), (9, (7, 1, 1))],
    )
    def test_small_classes(self, size: int, expected: tuple[int, int, int]) -> None:
        assert counts(items_of(size, 50))[0] == expected

    def test_train_alone_is_cut_like_no_split_at_all(self) -> None:
        plain = assign_splits(items_of(30, 30), seed=4)
        assert assign_splits(items_of(30, 30, split=TRAIN), seed=4) == plain

    @given(st.integers(0, 2**63), st.randoms(use_true_random=False))
    def test_the_order_of_the_files_does_not_matter(self, seed: int, rng: random.Random) -> None:
        items = items_of(13, 7, 2)
        by_name = dict(zip((i.name for i in items), assign_splits(items, seed=seed), strict=True))
        rng.shuffle(items)
        assert [by_name[i.name] for i in items] == assign_splits(items, seed=seed)

    def test_another_seed_is_another_choice_of_the_same_size(self) -> None:
        items = items_of(40, 40)
        assert assign_splits(items, seed=0) != assign_splits(items, seed=1)
        assert counts(items, seed=0) == counts(items, seed=1)

    def test_every_image_gets_into_test_under_some_seed(self) -> None:
        items = items_of(8, 8)
        tested = {
            item.name
            for seed in range(60)
            for item, split in zip(items, assign_splits(items, seed=seed), strict=True)
            if split is TEST
        }
        assert tested == {item.name for item in items}

    @given(st.integers(0, 1000), st.lists(st.integers(0, 5), min_size=6, max_size=40))
    def test_copies_of_an_image_stay_together(self, seed: int, groups: list[int]) -> None:
        items = [SplitItem(f"{n}.png", 0, f"copy{group}") for n, group in enumerate(groups)]
        placed: dict[str, set[Split]] = {}
        for item, split in zip(items, assign_splits(items, seed=seed), strict=True):
            placed.setdefault(item.group, set()).add(split)
        assert all(len(splits) == 1 for splits in placed.values())
        assert {TRAIN} in placed.values()


class TestGivenSplits:
    def test_all_three_are_taken_as_they_are(self) -> None:
        items = [
            *items_of(9, 9, split=TRAIN),
            *items_of(2, 2, split=VAL, prefix="v"),
            *items_of(3, 1, split=TEST, prefix="t"),
        ]
        assert assign_splits(items, seed=7) == [item.split for item in items]

    def test_train_and_val_leave_test_empty(self) -> None:
        items = [*items_of(9, 9, split=TRAIN), *items_of(2, 2, split=VAL, prefix="v")]
        assert TEST not in assign_splits(items, seed=0)

    def test_train_and_test_carve_a_fifth_of_train(self) -> None:
        items = [*items_of(50, 10, 1, split=TRAIN), *items_of(5, 5, 5, split=TEST, prefix="t")]
        assert counts(items) == {0: (40, 10, 5), 1: (8, 2, 5), 2: (1, 0, 5)}
        splits = assign_splits(items, seed=0)
        assert [s for i, s in zip(items, splits, strict=True) if i.split is TEST] == [TEST] * 15

    def test_half_given_splits_are_refused(self) -> None:
        with pytest.raises(ValueError, match="either every item"):
            assign_splits([*items_of(3), *items_of(3, split=TRAIN)], seed=0)
