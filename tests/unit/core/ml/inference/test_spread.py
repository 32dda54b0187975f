"""On how many cores one image runs, on networks of several characters."""

from collections import Counter

import pytest

from core.ml.inference.spread import Spread


def live(spread, took_s, images=400, idle=None):
    """Run lone images; return how often each number of cores was chosen in the second half."""
    chosen = []
    for _ in range(images):
        cores = spread.find(idle or spread._counts[-1])
        chosen.append(cores)
        spread.add(cores, took_s(cores))
    return Counter(chosen[images // 2 :])


def test_the_first_images_try_every_number_twice_from_all_cores_down():
    spread, chosen = Spread(6), []
    for _ in range(8):
        chosen.append(spread.find(6))
        spread.add(chosen[-1], 1 / chosen[-1])
    assert chosen == [6, 6, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize(
    ("took_s", "best"),
    [
        (lambda cores: 0.030, 1),
        (lambda cores: 0.030 + 0.005 * cores, 1),
        (lambda cores: 0.300 / cores, 8),
        (lambda cores: 0.100 / min(cores, 3), 4),
        (lambda cores: 0.100 - 0.002 * cores, 1),  # all of them save 14 %
    ],
)
def test_as_many_as_pay(took_s, best):
    chosen = live(Spread(8), took_s)
    assert chosen[best] > 0.9 * sum(chosen.values())


def test_what_prepares_the_operators_does_not_count():
    spread = Spread(2)
    calls = Counter()

    def took_s(cores):
        calls[cores] += 1
        return 0.250 if calls[cores] == 1 else 0.040 / cores

    assert live(spread, took_s).most_common(1)[0][0] == 2


def test_a_network_that_changes_is_followed():
    spread = Spread(2)
    assert live(spread, lambda cores: 0.040).most_common(1)[0][0] == 1
    assert live(spread, lambda cores: 0.040 / cores, images=4000).most_common(1)[0][0] == 2


def test_no_more_than_are_idle():
    spread = Spread(8)
    live(spread, lambda cores: 0.300 / cores)
    assert live(spread, lambda cores: 0.300 / cores, idle=3).keys() == {1, 2}
    spread.add(3, 1.0)  # a number that is never asked for is passed over
    assert spread.find(1) == 1


def test_one_accident_changes_nothing():
    spread = Spread(2)
    live(spread, lambda cores: 0.040 / cores)
    spread.add(2, 30.0)
    assert spread.find(2) == 2
