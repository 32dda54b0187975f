"""A seed draws the same faults, each kind as often as the others; and faults wait for the work."""

import itertools
import threading
from collections import Counter

from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.injector import Injector, _Pace
from benchmarks.chaos.schedule import Draw, draw_faults
from benchmarks.chaos.targets import NotStruckError
from core.clock import monotonic_s


def take(count, **options):
    return list(itertools.islice(draw_faults(("a", "b", "c"), **options), count))


class TestDraws:
    def test_a_seed_draws_the_same_faults(self):
        assert take(30, seed=4, mean_gap_s=2) == take(30, seed=4, mean_gap_s=2)
        assert take(30, seed=4, mean_gap_s=2) != take(30, seed=5, mean_gap_s=2)

    def test_every_kind_comes_as_often_as_the_others(self):
        assert Counter(draw.kind for draw in take(30, seed=1, mean_gap_s=2)) == dict.fromkeys(
            "abc", 10
        )

    def test_gaps_and_lengths_are_within_their_bounds(self):
        for draw in take(100, seed=2, mean_gap_s=2):
            assert 0.5 <= draw.gap_s <= 3.5
            assert 0 <= draw.pick < 1
            assert 0 <= draw.length < 1


class TestInjector:
    def strike(self, monkeypatch, fault, *, faults, kinds="a", within_s=60.0):
        monkeypatch.setitem(FAULTS, "a", fault)
        injector = Injector(targets=None, tell=lambda _line: None)
        injector.run(
            (Draw(kind, 0.0, 0.0, 0.0) for kind in itertools.cycle(kinds)),
            faults=faults,
            deadline_s=monotonic_s() + within_s,
            count_ended=lambda: 0,
            over=threading.Event(),
        )
        return injector

    def test_stops_after_so_many(self, monkeypatch):
        injector = self.strike(monkeypatch, lambda _targets, _draw: "it", faults=5)
        assert injector.struck == {"a": 5}

    def test_what_had_nothing_to_strike_is_made_up_for(self, monkeypatch):
        outcomes = iter([NotStruckError, None, NotStruckError, NotStruckError, None, None, None])
        lock = threading.Lock()

        def fault(_targets, _draw):
            with lock:
                outcome = next(outcomes)
            if outcome is not None:
                raise outcome
            return "it"

        injector = self.strike(monkeypatch, fault, faults=3)
        assert injector.struck["a"] == 3
        assert injector.missed["a"] == 3

    def test_begins_nothing_when_the_time_is_up(self, monkeypatch):
        injector = self.strike(monkeypatch, lambda _t, _d: "it", faults=5, within_s=-1.0)
        assert injector.struck.total() == 0


class Impatient:
    """An event that is never set, and that nobody waits for."""

    def __init__(self):
        self.waits = 0

    def wait(self, _timeout_s):
        self.waits += 1
        return False


class TestPace:
    def test_holds_nothing_back_while_few_have_struck(self):
        over = Impatient()
        _Pace(lambda: 0).wait(5, over)
        assert over.waits == 0

    def test_holds_a_fault_back_until_a_job_has_ended(self):
        over = Impatient()
        pace = _Pace(lambda: int(over.waits >= 7))
        pace.wait(6, over)
        assert over.waits == 7
        pace.wait(11, over)
        assert over.waits == 7

    def test_goes_on_in_the_end_though_no_job_has_ended(self):
        over = Impatient()
        pace = _Pace(lambda: 0)
        pace.wait(6, over)
        assert over.waits == 240
        pace.wait(11, over)
        assert over.waits == 240
