"""Turns between projects: fair by images and weight, without credit, whatever the batch keys."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ml.inference.queueing import FairQueue

PROJECTS = ("ants", "bees", "cats")
WEIGHTS = st.sampled_from((0.5, 1.0, 2.0, 4.0))


def take(queue, count, key=None):
    """The projects of the next items, as a batch of one key takes them."""
    taken = []
    for _ in range(count):
        if queue.find_next(key) is None:
            break
        shown = queue.find_next(key)
        assert queue.pop(key) is shown
        taken.append(shown[0])
    return taken


@given(
    floods=st.dictionaries(st.sampled_from(PROJECTS), st.integers(30, 60), min_size=2),
    weights=st.tuples(WEIGHTS, WEIGHTS, WEIGHTS),
)
def test_projects_that_wait_are_served_by_weight_to_within_an_image(floods, weights):
    weight_of = dict(zip(PROJECTS, weights, strict=True)).__getitem__
    queue = FairQueue(weight_of)
    for project, count in floods.items():
        for number in range(count):
            queue.put((project, number), project=project)
    served = Counter()
    waiting = Counter(floods)
    while all(waiting[project] for project in floods):
        queue.next_key()
        (project,) = take(queue, 1)
        served[project] += 1
        waiting[project] -= 1
        shares = {p: served[p] / weight_of(p) for p in floods}
        allowance = max(1 / weight_of(p) for p in floods)
        assert max(shares.values()) - min(shares.values()) <= allowance + 1e-9


@given(
    before=st.integers(0, 200),
    flood=st.integers(1, 200),
    quiet=st.integers(1, 20),
)
def test_idling_banks_no_credit(before, flood, quiet):
    """However long a project was away, it and the others alternate once it is back."""
    queue = FairQueue()
    for number in range(before + flood + quiet):
        queue.put(("flood", number), project="flood")
    queue.next_key()
    take(queue, before)
    for number in range(quiet):
        queue.put(("quiet", number), project="quiet")
    queue.next_key()
    order = take(queue, 2 * min(flood, quiet))
    for end in range(1, len(order) + 1):
        counts = Counter(order[:end])
        assert abs(counts["quiet"] - counts["flood"]) <= 1


@given(
    items=st.lists(
        st.tuples(st.sampled_from(PROJECTS), st.sampled_from("kl"), st.booleans()), max_size=80
    ),
    batch=st.integers(1, 8),
)
def test_nothing_is_lost_and_a_project_is_served_in_its_order(items, batch):
    queue = FairQueue()
    sent = []
    received = []

    def take_batch():
        key = queue.next_key()
        for _ in range(batch):
            if queue.find_next(key) is None:
                break
            received.append(queue.pop(key))

    for number, (project, key, is_taken) in enumerate(items):
        queue.put((project, key, number), project=project, key=key)
        sent.append((project, key, number))
        if is_taken:
            take_batch()
    while len(queue):
        take_batch()
    assert sorted(received) == sorted(sent)
    for project in PROJECTS:
        for key in "kl":
            own = [n for p, k, n in received if (p, k) == (project, key)]
            assert own == sorted(own)


def test_projects_whose_models_cannot_be_mixed_alternate_in_batches():
    queue = FairQueue()
    for number in range(100):
        queue.put(("ants", number), project="ants", key="k")
        queue.put(("bees", number), project="bees", key="k")
        queue.put(("cats", number), project="cats", key="l")
    served = Counter()
    for _ in range(6):
        key = queue.next_key()
        served.update(take(queue, 12, key))
        assert max(served.values()) - min(served[p] for p in PROJECTS) <= 12
    assert served == {"ants": 24, "bees": 24, "cats": 24}


def test_what_is_thrown_away_does_not_count_as_served():
    queue = FairQueue()
    for number in range(4):
        queue.put(("ants", number), project="ants")
        queue.put(("bees", number), project="bees")
    queue.next_key()
    assert queue.pop(is_charged=False) == ("bees", 0)
    assert queue.pop(is_charged=False) == ("bees", 1)
    assert take(queue, 4) == ["bees", "ants", "bees", "ants"]


def test_whoever_comes_while_others_wait_is_next():
    queue = FairQueue()
    for number in range(5):
        queue.put(("flood", number), project="flood")
    assert take(queue, 3) == ["flood"] * 3
    queue.put(("quiet", 0), project="quiet")
    assert take(queue, 2) == ["quiet", "flood"]


def test_a_project_is_modest_that_has_half_of_the_others_mean_or_less_waiting():
    queue = FairQueue()
    queue.put("item", project="quiet")
    assert not queue.is_modest("quiet"), "it waits alone"
    assert not queue.is_modest("nobody")
    queue.put("item", project="flood")
    assert not queue.is_modest("quiet")
    queue.put("item", project="flood")
    assert queue.is_modest("quiet")
    assert not queue.is_modest("flood")
    queue.put("item", project="third")
    assert not queue.is_modest("quiet"), "the others have three among them"
    queue.put("item", project="flood", key="other")
    assert not queue.is_modest("quiet"), "of another key"
    queue.put("item", project="flood")
    assert queue.is_modest("quiet")
    assert queue.is_modest("third")


def test_many_projects_that_come_once_leave_nothing_behind():
    queue = FairQueue()
    queue.put(("stays", 0), project="stays")
    for number in range(5000):
        queue.put(("guest", number), project=f"guest {number}")
        queue.put(("stays", number), project="stays")
        queue.next_key()
        take(queue, 2)
    assert len(queue) == 1
    assert len(queue._idle) <= 1100
    assert len(queue._turns) <= 10


def test_an_empty_queue_says_so():
    queue = FairQueue()
    assert queue.find_next() is None
    with pytest.raises(IndexError):
        queue.next_key()
    with pytest.raises(KeyError):
        queue.pop()
