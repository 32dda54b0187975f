"""The network's thread: batches of what waits, and what can go wrong with one image or all."""

import queue
import threading
import time
from dataclasses import dataclass, field

import pytest

from core.errors import DeadlineError
from core.ml.inference.admission import BatchTimes
from core.ml.inference.batch_size import BatchSize
from core.ml.inference.batcher import Batcher, Dropped, Ticket

PATIENCE_S = 30.0
LATER_S = 3600.0


@dataclass(eq=False)
class Caller:
    is_over: bool = False


@dataclass
class Network:
    """An engine that is written out: answers by doubling, runs a batch when it is allowed to."""

    batches: list = field(default_factory=list)
    cores: list = field(default_factory=list)
    may_run: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    has_begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def forward(self, residents, pixels, cores):
        self.batches.append(list(pixels))
        self.cores.append(cores)
        self.has_begun.release()
        assert self.may_run.acquire(timeout=PATIENCE_S)
        if "poison" in pixels:
            raise RuntimeError("the device has failed")
        return [(resident, 2 * pixel) for resident, pixel in zip(residents, pixels, strict=True)]


class FixedSize:
    def __init__(self, most):
        self.find = lambda *, beside_modest: most
        self.add = lambda images, took_s: None


class Rig:
    def __init__(self, *, max_batch=4, times=None, cores=1, size=None):
        self.network = Network()
        self.delivered = queue.Queue()
        self.times = times or BatchTimes()
        self.batcher = Batcher(
            "tiny",
            self.network.forward,
            self.deliver,
            max_batch=max_batch,
            times=self.times,
            cores=cores,
        )
        # What pays is a matter of this machine's speed.
        self.batcher._size = size or FixedSize(max_batch)

    def deliver(self, tickets):
        for ticket in tickets:
            self.delivered.put(ticket)

    def put(self, *pixels, project="ants", key="k", deadline_s=None, caller=None):
        if deadline_s is None:
            deadline_s = time.monotonic() + LATER_S
        tickets = [
            Ticket(caller or Caller(), 0, project, "model", key, deadline_s, None, pixels=pixel)
            for pixel in pixels
        ]
        self.batcher.put(tickets)
        return tickets

    def hold(self, key="k"):
        """Let a first batch of one image occupy the network, with all of its cores."""
        self.put("first", key=key)
        self.await_begun(1)

    def await_begun(self, batches):
        for _ in range(batches):
            assert self.network.has_begun.acquire(timeout=PATIENCE_S)

    def begins_nothing(self):
        return not self.network.has_begun.acquire(timeout=0.1)

    def run(self, batches=100):
        self.network.may_run.release(batches)

    def receive(self, count):
        tickets = [self.delivered.get(timeout=PATIENCE_S) for _ in range(count)]
        return {ticket.outcome[1] if isinstance(ticket.outcome, tuple) else ticket.outcome
                for ticket in tickets}  # fmt: skip


@pytest.fixture
def build():
    rigs = []

    def make(**arguments):
        rigs.append(Rig(**arguments))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.run(1000)
        assert rig.batcher.close(PATIENCE_S), "the thread did not end"


def test_takes_what_waits_when_the_network_is_free(build):
    rig = build()
    rig.hold()
    rig.put("a", "b", "c", "d", "e", "f")
    rig.run()
    assert rig.receive(7) == {2 * p for p in ("first", *"abcdef")}
    assert rig.network.batches == [["first"], ["a", "b", "c", "d"], ["e", "f"]]


def test_models_that_cannot_be_mixed_are_not(build):
    rig = build()
    rig.hold()
    rig.put("a", "b")
    rig.put("x", "y", key="l")
    rig.put("c")
    rig.run()
    rig.receive(6)
    assert rig.network.batches[1:] == [["a", "b", "c"], ["x", "y"]]


def test_a_flood_does_not_keep_a_quiet_project_waiting(build):
    rig = build()
    rig.hold()
    rig.put(*[f"f{number}" for number in range(50)], project="flood")
    rig.put("q1", "q2", project="quiet")
    rig.run()
    rig.receive(53)
    assert rig.network.batches[1][0] == "q1"
    assert {"q1", "q2"} <= {image for batch in rig.network.batches[1:3] for image in batch}


def test_a_batch_that_fails_fails_alone_and_the_thread_goes_on(build):
    rig = build(max_batch=2)
    rig.hold()
    rig.put("a", "poison", "b", "c")
    rig.run()
    tickets = [rig.delivered.get(timeout=PATIENCE_S) for _ in range(5)]
    outcomes = [ticket.outcome for ticket in tickets]
    assert outcomes[0][1] == "firstfirst"
    assert [str(outcome) for outcome in outcomes[1:3]] == ["the device has failed"] * 2
    assert [outcome[1] for outcome in outcomes[3:]] == ["bb", "cc"]
    assert rig.batcher.failures == 0


def test_failures_are_counted_until_a_batch_succeeds(build):
    rig = build(max_batch=1)
    rig.run()
    rig.put("poison", "poison")
    rig.receive(2)
    assert rig.batcher.failures == 2


def test_what_is_late_is_told_so_and_not_run(build):
    rig = build()
    rig.hold()
    (late,) = rig.put("late", deadline_s=time.monotonic() - 1)
    rig.put("a")
    rig.run()
    rig.receive(3)
    assert isinstance(late.outcome, DeadlineError)
    assert rig.network.batches[1:] == [["a"]]


def test_what_nobody_waits_for_is_dropped(build):
    rig = build()
    rig.hold()
    caller = Caller()
    (gone,) = rig.put("gone", caller=caller)
    rig.put("a")
    caller.is_over = True
    rig.run()
    rig.receive(3)
    assert isinstance(gone.outcome, Dropped)
    assert rig.network.batches[1:] == [["a"]]


def slow_times():
    """A second for each image of a batch."""
    times = BatchTimes()
    for size in (1, 2, 4):
        times.add(size, float(size))
    return times


def test_a_batch_is_no_longer_than_its_tightest_deadline_allows(build):
    rig = build(max_batch=8, times=slow_times())
    tight_s = time.monotonic() + 3.5  # three images fit, four do not; begun within half a second
    taken, _ = gather(rig, [tight_s] + [tight_s + LATER_S] * 7)
    assert taken == 3


def test_who_is_late_even_alone_does_not_hold_the_others_back(build):
    rig = build(max_batch=4, times=slow_times())
    taken, _ = gather(rig, [time.monotonic() + 0.5] + [time.monotonic() + LATER_S] * 3)
    assert taken == 4


def test_a_batch_is_no_larger_than_pays(build):
    size = BatchSize(8)
    for images in (1, 2, 4, 8):
        size.add(images, 0.01 * images)  # a batch of many takes as long as many of one
    rig = build(max_batch=8, size=size)
    taken, _ = gather(rig, [time.monotonic() + LATER_S] * 8)
    assert taken == 2


def gather(rig, deadlines_s):
    """What the thread would take if it looked now."""
    batcher = Batcher.__new__(Batcher)
    batcher.__dict__.update(rig.batcher.__dict__)
    batcher._queue = type(rig.batcher._queue)()
    for number, deadline_s in enumerate(deadlines_s):
        ticket = Ticket(Caller(), number, "ants", "model", "k", deadline_s, None, pixels=number)
        batcher._queue.put(ticket, project="ants", key="k")
    batch, rejected, _ = batcher._gather(time.monotonic())
    return len(batch), rejected


@pytest.mark.parametrize(("took_s", "fills"), [(float, False), (lambda _images: 9.0, True)])
def test_a_quiet_projects_batch_is_filled_with_a_floods_images_where_that_costs_it_nothing(
    build, took_s, fills
):
    times = BatchTimes()
    for images in (1, 2, 4):
        times.add(images, took_s(images))
    times.add = lambda images, took_s: None
    rig = build(times=times)
    rig.hold()
    rig.put(*[f"f{number}" for number in range(20)], project="flood")
    rig.put("q0", "q1", project="quiet")
    rig.run()
    rig.receive(23)
    taken = next(batch for batch in rig.network.batches[1:] if "q0" in batch)
    assert (len(taken) == 4) == fills
    if not fills:
        assert taken == ["q0"]
        assert {len(batch) for batch in rig.network.batches[4:-1]} == {4}, "the flood's are filled"


class NotingSize:
    """One image a batch; notes whether somebody who asks little was said to wait."""

    def __init__(self):
        self.noted = []
        self.add = lambda images, took_s: None

    def find(self, *, beside_modest):
        self.noted.append(beside_modest)
        return 1


@pytest.mark.parametrize(
    ("project", "others", "is_modest"),
    [("quiet", 6, True), ("flood", 6, False), ("quiet", 0, False)],
)
def test_batches_are_held_small_where_a_project_that_asks_little_meets_a_queue(
    build, project, others, is_modest
):
    size = NotingSize()
    rig = build(size=size)
    rig.hold()
    rig.put(*[f"f{number}" for number in range(others)], project="flood")
    rig.put("q", project=project)
    rig.run()
    rig.receive(others + 2)
    assert size.noted == [False] + [is_modest] * (others + 1)


def test_closing_finishes_what_is_queued(build):
    rig = build()
    rig.hold()
    rig.put("a", "b")
    rig.run()
    assert rig.batcher.close(PATIENCE_S)
    assert rig.receive(3) == {"firstfirst", "aa", "bb"}


def test_a_lone_image_has_all_cores(build):
    rig = build(cores=4)
    rig.hold()
    assert rig.network.cores == [4]


@pytest.mark.parametrize(
    ("cores", "images", "batches", "each"),
    [
        (2, 2, [1, 1], [1, 1]),
        (2, 5, [2, 3], [1, 1]),
        (2, 40, [4, 4], [1, 1]),
        (4, 3, [1, 1, 1], [1, 1, 2]),
        (8, 2, [1, 1], [4, 4]),
    ],
)
def test_what_waits_is_shared_among_cores(build, cores, images, batches, each):
    rig = build(cores=cores)
    rig.hold()
    rig.put(*map(str, range(images)))
    assert rig.begins_nothing(), "the first one has all cores"
    rig.run(1)
    rig.await_begun(len(batches))
    assert rig.begins_nothing()
    assert sorted(map(len, rig.network.batches[1:])) == batches
    assert sorted(rig.network.cores[1:]) == each
    rig.run()
    rig.receive(images + 1)


def test_the_next_batch_waits_for_one_core_only(build):
    rig = build(cores=2, max_batch=1)
    rig.hold()
    rig.put("a", "b", "c")
    rig.run(1)
    rig.await_begun(2)
    assert rig.begins_nothing()
    rig.run(1)
    rig.await_begun(1)
    assert rig.network.batches[1:] in ([["a"], ["b"], ["c"]], [["b"], ["a"], ["c"]])
    rig.run()
    rig.receive(4)


def test_models_that_cannot_be_mixed_are_not_run_side_by_side_and_take_turns(build):
    rig = build(cores=2, max_batch=2)
    rig.hold()
    rig.put(*[f"k{number}" for number in range(3)])
    rig.put(*[f"l{number}" for number in range(3)], key="l")
    rig.put(*[f"k{number}" for number in range(3, 6)])
    rig.run(1)
    rig.await_begun(2)
    # Both cores are given to the key whose turn it is, as many images as a batch on each.
    assert {len(batch) for batch in rig.network.batches[1:]} == {2}
    assert {image for batch in rig.network.batches[1:] for image in batch} == {
        f"k{number}" for number in range(4)
    }
    rig.run(1)
    assert rig.begins_nothing(), "the other one of this key still runs, and its turn is over"
    rig.run(1)
    rig.await_begun(2)
    assert {image[0] for batch in rig.network.batches[3:] for image in batch} == {"l"}
    rig.run()
    rig.receive(10)
    assert all(len({image[0] for image in batch}) == 1 for batch in rig.network.batches)


def test_who_is_dropped_takes_no_core(build):
    rig = build(cores=2)
    rig.hold()
    caller = Caller()
    rig.put("gone", "gone too", caller=caller)
    caller.is_over = True
    rig.run(1)
    rig.receive(3)
    rig.put("a")
    rig.await_begun(1)
    assert rig.network.cores == [2, 2]
    rig.run()
    rig.receive(1)


def test_batches_on_one_core_are_what_the_fit_is_made_of(build):
    times = slow_times()
    rig = build(cores=2, times=times)
    assert times.abreast == 2
    before = times.line
    rig.hold()
    rig.run(1)
    rig.receive(1)
    assert times.line == before, "it had both cores"
