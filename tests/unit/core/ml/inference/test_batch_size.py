"""How large batches grow on networks of several characters."""

from collections import Counter

import pytest

from core.ml.inference.batch_size import BatchSize


def live(size, took_s, batches=400):
    """Run full batches; return how often each size was chosen in the second half."""
    chosen = []
    for _ in range(batches):
        images = size.find()
        chosen.append(images)
        size.add(images, took_s(images))
    return Counter(chosen[batches // 2 :])


def test_the_first_batches_grow_as_long_as_that_pays():
    size, chosen = BatchSize(64), []
    for _ in range(6):
        images = size.find()
        chosen.append(images)
        size.add(images, 0.01 + 0.01 * images)
    # 8 images have 94 % of the rate of 16, those 97 % of that of 32.
    assert chosen == [2, 4, 8, 16, 32, 16]


def test_a_network_that_gains_by_every_image_gets_the_largest():
    chosen = live(BatchSize(64), lambda images: 0.005 + 0.0001 * images)
    assert chosen.most_common(1)[0][0] == 64


def test_a_network_that_gains_nothing_gets_the_smallest():
    chosen = live(BatchSize(64), lambda images: 0.01 * images)
    assert chosen.most_common(1)[0][0] == 2
    assert max(chosen) <= 4
    assert chosen[4] <= sum(chosen.values()) / 30


def test_a_slow_single_image_does_not_matter():
    # As measured on two cores: 30 ms for one, 17 ms for each of several.
    size = BatchSize(64)
    for _ in range(20):
        size.add(1, 0.030)
    chosen = live(size, lambda images: 0.030 if images == 1 else 0.017 * images)
    assert chosen.most_common(1)[0][0] == 2


def test_a_network_in_between_gets_what_is_nearly_the_best():
    # 1 / (0.0001 + 0.001 / B) a second: 16 images have 62 % of the endless rate, 64 have 86 %.
    chosen = live(BatchSize(256), lambda images: 0.001 + 0.0001 * images)
    assert chosen.most_common(1)[0][0] in (64, 128)


def test_a_network_that_changes_is_followed():
    size = BatchSize(64)
    live(size, lambda images: 0.01 * images)
    chosen = live(size, lambda images: 0.05 + 0.0001 * images, batches=4000)
    assert chosen.most_common(1)[0][0] >= 32


def test_batches_are_smaller_beside_a_project_that_asks_little():
    size = BatchSize(64)
    for images, took_s in ((2, 0.02), (4, 0.017), (8, 0.016), (16, 0.014), (32, 0.0135)):
        size.add(images, took_s * images)
    assert size.find() == 16
    assert size.find(beside_modest=True) == 4  # 2 has 67 % of the best rate


def test_a_machine_that_gets_busier_does_not_make_sizes_look_better_that_were_not_seen_since():
    size = BatchSize(64)
    for images in (8, 4, 2):
        size.add(images, 0.01 + 0.025 * images)
    for _ in range(100):
        images = size.find(beside_modest=True)
        assert images == 2
        size.add(images, 1.4 * (0.01 + 0.025 * images))


def test_what_is_the_best_is_found_there_too():
    size, chosen = BatchSize(64), []
    for _ in range(9):
        chosen.append(size.find(beside_modest=True))
        size.add(chosen[-1], 0.010 + 0.0005 * chosen[-1])
    # 32 images have 81 % of the rate of 64, and 16 have 58 %; the eighth is of half the size.
    assert chosen == [2, 4, 8, 16, 32, 64, 32, 16, 32]


@pytest.mark.parametrize("most", [1, 3, 64])
def test_never_more_than_the_setting(most):
    assert max(live(BatchSize(most), lambda images: 0.01 + 0.01 * images)) <= most
