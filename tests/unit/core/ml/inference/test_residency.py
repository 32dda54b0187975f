"""Models in memory: one load for all who wait, room by use, pins, failures."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from core.errors import ConflictError, UnavailableError
from core.ml.inference.residency import FAILED_RETRYABLE_S, FAILED_S, Residency

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Loaded:
    name: str
    size_bytes: int = 10


class Rig:
    """A residency over a store that is written out, and a clock that stands still."""

    def __init__(self, max_bytes=30):
        self.now_s = 0.0
        self.loads = []
        self.evicted = []
        self.errors = {}
        self.held = {}
        self.residency = Residency(
            self.load, self.evict, max_bytes=max_bytes, clock=lambda: self.now_s
        )

    def load(self, name):
        self.loads.append(name)
        if name in self.held:
            assert self.held[name].wait(PATIENCE_S)
        if name in self.errors:
            raise self.errors[name]
        return Loaded(name)

    def evict(self, resident):
        self.evicted.append(resident.name)

    def get(self, name):
        """Load and pin."""
        return self.residency.load((name, ""), name).result(PATIENCE_S)

    def use(self, *names):
        """Load, pin and let go, one after the other."""
        for name in names:
            if self.residency.pin((name, "")) is None:
                self.get(name)
            self.residency.unpin((name, ""))
            self.settle()

    def settle(self):
        """Wait until the loader threads have made room."""
        pool = self.residency._pool
        barrier = threading.Barrier(5)
        for _ in range(4):
            pool.submit(barrier.wait, PATIENCE_S)
        barrier.wait(PATIENCE_S)

    @property
    def names(self):
        return [name for name, _ in self.residency.list_keys()]


@pytest.fixture
def build():
    rigs = []

    def make(**arguments):
        rigs.append(Rig(**arguments))
        return rigs[-1]

    yield make
    for rig in rigs:
        for event in rig.held.values():
            event.set()
        rig.residency.close()


@pytest.fixture
def rig(build):
    return build()


def test_a_hundred_calls_are_one_load(rig):
    rig.held["ant"] = threading.Event()
    with ThreadPoolExecutor(20) as callers:
        calls = [callers.submit(rig.residency.load, ("ant", ""), "ant") for _ in range(100)]
        loads = [call.result(PATIENCE_S) for call in calls]
        rig.held["ant"].set()
        models = {id(load.result(PATIENCE_S)) for load in loads}
    assert rig.loads == ["ant"]
    assert len(models) == 1
    for _ in range(99):
        rig.residency.unpin(("ant", ""))
    rig.use("bee", "cat", "dog", "emu")
    assert "ant" in rig.names, "one of the hundred has still to let go"
    rig.residency.unpin(("ant", ""))


def test_other_models_do_not_wait_for_a_load(rig):
    rig.use("bee")
    rig.held["ant"] = threading.Event()
    slow = rig.residency.load(("ant", ""), "ant")
    assert rig.residency.pin(("bee", "")) is not None
    assert rig.get("cat").name == "cat"
    assert not slow.done()


def test_the_least_recently_used_goes_first(rig):
    rig.use("ant", "bee", "cat", "ant", "dog")
    assert rig.evicted == ["bee"]
    assert rig.names == ["cat", "ant", "dog"]


def test_a_pinned_model_is_never_evicted(rig):
    rig.get("ant")
    rig.use("bee", "cat", "dog", "emu")
    assert "ant" in rig.names
    rig.residency.unpin(("ant", ""))


def test_pinned_models_may_exceed_the_bound_and_go_when_they_are_let_go(rig):
    for name in ("ant", "bee", "cat", "dog"):
        rig.get(name)
    rig.settle()
    assert rig.evicted == []
    assert rig.residency.count()["bytes"] == 40
    for name in ("ant", "bee", "cat", "dog"):
        rig.residency.unpin((name, ""))
    rig.settle()
    assert rig.evicted == ["ant"]


def test_a_model_larger_than_the_bound_stays_while_it_is_alone(build):
    rig = build(max_bytes=5)
    rig.use("ant", "ant")
    assert rig.loads == ["ant"]
    rig.use("bee")
    assert rig.names == ["bee"]


def test_what_an_operator_keeps_stays_until_it_is_dropped(rig):
    rig.get("ant")
    assert rig.residency.keep(("ant", ""))
    rig.residency.unpin(("ant", ""))
    rig.use("bee", "cat", "dog", "emu")
    assert "ant" in rig.names
    assert rig.residency.drop(("ant", ""))
    rig.settle()
    assert "ant" not in rig.names
    assert not rig.residency.drop(("ant", ""))


def test_kept_models_cannot_take_more_than_there_is(rig):
    for name in ("ant", "bee", "cat"):
        rig.get(name)
        assert rig.residency.keep((name, ""))
    rig.get("dog")
    assert not rig.residency.keep(("dog", ""))


def test_dropping_waits_for_the_images_on_their_way(rig):
    rig.get("ant")
    rig.residency.drop(("ant", ""))
    rig.settle()
    assert rig.evicted == []
    assert not rig.residency.is_resident(("ant", ""))
    rig.residency.unpin(("ant", ""))
    rig.settle()
    assert rig.evicted == ["ant"]


@pytest.mark.parametrize(
    ("error", "held_s"),
    [
        (ConflictError("other weights"), FAILED_S),
        (UnavailableError("no store"), FAILED_RETRYABLE_S),
    ],
)
def test_a_failed_load_is_not_repeated_at_once(rig, error, held_s):
    rig.errors["ant"] = error
    for _ in range(3):
        with pytest.raises(type(error)):
            rig.get("ant")
    assert rig.loads == ["ant"]
    rig.now_s += held_s
    del rig.errors["ant"]
    assert rig.get("ant").name == "ant"
    assert rig.residency.count()["failed_loads"] == 1


def test_all_who_wait_for_a_failing_load_learn_why(rig):
    rig.held["ant"] = threading.Event()
    rig.errors["ant"] = ConflictError("other weights")
    loads = [rig.residency.load(("ant", ""), "ant") for _ in range(10)]
    rig.held["ant"].set()
    assert {str(load.exception(PATIENCE_S)) for load in loads} == {"other weights"}
    assert rig.loads == ["ant"]
