"""How many images may be under way: the fit of the batch times, the limit, the shares."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ml.inference.admission import (
    Admission,
    BatchTimes,
    Departures,
    OverloadedError,
    ProjectOverloadedError,
)


def fitted(start_s=0.01, slope_s=0.002, sizes=(1, 2, 8, 32, 64)):
    times = BatchTimes()
    for size in sizes:
        times.add(size, start_s + slope_s * size)
    return times


def build(**changes):
    arguments = {"deadline_s": 1.0, "max_batch": 8, "max_images": 1000, **changes}
    return Admission(arguments.pop("times", fitted()), **arguments)


@given(
    start_s=st.floats(0, 1),
    slope_s=st.floats(1e-5, 0.1),
    sizes=st.lists(st.integers(1, 64), min_size=2, max_size=200).filter(lambda s: len(set(s)) > 1),
)
def test_a_line_is_found_again(start_s, slope_s, sizes):
    times = fitted(start_s, slope_s, sizes)
    found_start_s, found_slope_s = times.line
    # Sizes that hardly differ determine the line badly; where they were, it is right nonetheless.
    for size in sizes[-3:]:
        assert times.predict_s(size) == pytest.approx(start_s + slope_s * size, rel=0.35, abs=1e-6)
    assert found_start_s >= 0
    assert found_slope_s >= 0


def test_a_network_that_becomes_slower_is_noticed():
    times = fitted(sizes=[1, 64] * 50)
    for _ in range(100):
        times.add(1, 0.1 + 0.02)
        times.add(64, 0.1 + 0.02 * 64)
    assert times.predict_s(64) == pytest.approx(1.38, rel=0.02)


def test_batches_of_one_size_foresee_larger_ones_as_slower_not_as_free():
    times = fitted(0.01, 0.002, sizes=[1] * 20)
    assert times.predict_s(1) == pytest.approx(0.012)
    assert times.predict_s(64) == pytest.approx(64 * 0.012)


def test_the_limit_is_throughput_times_the_time_that_is_left_of_nine_tenths():
    took_s = 0.01 + 0.002 * 8
    assert build().limit() == int(8 / took_s * (0.9 - took_s))


def test_the_limit_follows_batches_that_are_kept_small():
    times = fitted()
    times.size = 2
    took_s = 0.01 + 0.002 * 2
    assert build(times=times).limit() == int(2 / took_s * (0.9 - took_s))


def test_the_limit_knows_when_decoding_is_slower():
    took_s = 0.01 + 0.002 * 8
    assert build(find_rate=lambda: 20.0).limit() == int(20 * (0.9 - took_s))


def test_before_the_first_batch_two_batches_may_wait():
    assert build(times=BatchTimes()).limit() == 16


def test_a_network_slower_than_the_deadline_is_used_nonetheless():
    assert build(deadline_s=0.001).limit() == 8


def test_no_more_than_what_runs_at_once_is_kept_for_a_slow_network():
    times = fitted(0, 0.2)
    times.size, times.abreast = 2, 3
    assert build(times=times, deadline_s=0.1, max_batch=64).limit() == 6
    assert build(times=times, deadline_s=2.0, max_batch=64).limit() == int(15 * (1.8 - 0.4))


def test_the_limit_never_exceeds_the_setting():
    assert build(max_images=5).limit() == 5
    assert build(max_images=5, deadline_s=0.001).limit() == 5
    assert build(max_images=5, times=BatchTimes()).limit() == 5


def fill(admission, project, images=1):
    count = 0
    while True:
        try:
            admission.enter(project, images)
        except (OverloadedError, ProjectOverloadedError) as error:
            return count, error
        count += images


class TestOneProject:
    def test_has_the_whole_queue_and_then_is_told_when_to_come_back(self):
        admission = build(max_images=100, times=fitted(0, 0.1), deadline_s=60)
        count, error = fill(admission, "ants")
        assert count == 100
        assert isinstance(error, OverloadedError)
        assert error.retry_after_s == 10  # 100 images at 10 a second

    def test_comes_in_again_when_something_has_left(self):
        admission = build(max_images=10)
        fill(admission, "ants")
        admission.leave("ants", 3)
        assert fill(admission, "ants")[0] == 3

    def test_a_request_larger_than_the_queue_is_taken_alone(self):
        admission = build(max_images=10)
        admission.enter("ants", 64)
        with pytest.raises(OverloadedError):
            admission.enter("ants", 1)
        admission.leave("ants", 64)
        admission.enter("ants", 64)

    def test_checking_counts_nothing(self):
        admission = build(max_images=1)
        admission.check("ants")
        admission.check("ants")
        admission.enter("ants", 1)
        with pytest.raises(OverloadedError):
            admission.check("ants")
        assert admission.images == 1


class TestManyProjects:
    def test_a_quiet_project_is_let_in_when_another_has_filled_the_queue(self):
        admission = build(max_images=100)
        fill(admission, "flood")
        count, error = fill(admission, "quiet")
        assert count == 50
        assert isinstance(error, ProjectOverloadedError)
        assert isinstance(fill(admission, "flood")[1], ProjectOverloadedError)

    def test_weights_divide_the_queue(self):
        weights = {"flood": 1.0, "quiet": 3.0}
        admission = build(max_images=100, weight_of=weights.__getitem__)
        fill(admission, "flood")
        assert fill(admission, "quiet")[0] == 75

    def test_however_many_projects_there_are_the_bound_holds(self):
        admission = build(max_images=100)
        for number in range(1000):
            fill(admission, f"project {number}")
        assert admission.images <= 200

    def test_a_limit_of_its_own_is_a_429_while_there_is_room(self):
        admission = build(max_project_images=3)
        count, error = fill(admission, "ants")
        assert count == 3
        assert isinstance(error, ProjectOverloadedError)
        admission.enter("bees", 1)


class TestBesideOthers:
    """A network of 100 images a second and 9 seconds promised: 899 images may be under way."""

    @pytest.fixture
    def now_s(self):
        return [1000.0]

    @pytest.fixture
    def admission(self, now_s):
        return build(times=fitted(0, 0.01), deadline_s=10, clock=lambda: now_s[0])

    def serve(self, admission, now_s, project, rate, seconds=20):
        """Let a project have so many images a second answered, each as soon as it comes."""
        for _ in range(round(rate * seconds)):
            now_s[0] += 1 / rate
            admission.enter(project, 1)
            admission.leave(project, 1)

    def test_a_flood_has_what_the_others_leave(self, admission, now_s):
        self.serve(admission, now_s, "quiet", rate=20)
        count, error = fill(admission, "flood")
        assert count == pytest.approx(0.8 * admission.limit(), rel=0.03)
        assert isinstance(error, ProjectOverloadedError)
        assert error.retry_after_s == pytest.approx(9, abs=1)

    def test_its_share_is_left_to_it_whatever_others_take(self, admission, now_s):
        self.serve(admission, now_s, "greedy", rate=95)
        admission.enter("greedy", 1)
        assert fill(admission, "other")[0] == pytest.approx(0.5 * admission.limit(), abs=1)

    def test_it_has_everything_again_when_the_others_have_gone(self, admission, now_s):
        self.serve(admission, now_s, "quiet", rate=20)
        now_s[0] += 30
        count, error = fill(admission, "flood")
        assert count == admission.limit()
        assert isinstance(error, OverloadedError)

    def test_its_own_past_takes_nothing_from_it(self, admission, now_s):
        self.serve(admission, now_s, "flood", rate=90)
        assert fill(admission, "flood")[0] == admission.limit()

    def test_a_request_larger_than_its_part_is_taken_while_it_has_no_other(self, admission, now_s):
        self.serve(admission, now_s, "quiet", rate=20)
        admission.enter("quiet", 1)
        admission.enter("flood", admission.limit() - 1)
        with pytest.raises(ProjectOverloadedError):
            admission.enter("flood", 1)

    def test_those_long_gone_are_forgotten(self):
        departures = Departures()
        for number in range(5000):
            departures.add(f"project {number}", 1, float(number))
        assert len(departures._counts) <= 1024
        assert departures.find_rate_beside("another", 5000.0) == pytest.approx(0.6, abs=0.2)


@pytest.mark.parametrize("quiet_rate", [0, 10, 25, 40])
def test_what_is_admitted_is_answered_in_time(quiet_rate):
    """A flood comes to a quiet project: twice as many images as a server can answer, by turns."""
    now_s, tick_s = 0.0, 0.01
    admission = build(times=fitted(0, tick_s), deadline_s=5, clock=lambda: now_s)
    waiting = {"quiet": [], "flood": []}
    offered = {"quiet": 0.0, "flood": 0.0}
    served = {"quiet": 0, "flood": 0}
    waits_s = []
    for tick in range(3000):
        now_s = tick * tick_s
        rates = {"quiet": quiet_rate, "flood": 200 - quiet_rate if now_s > 5 else 0}
        for project, queue in waiting.items():
            offered[project] += rates[project] * tick_s
            while offered[project] >= 1:
                offered[project] -= 1
                with contextlib.suppress(OverloadedError, ProjectOverloadedError):
                    admission.enter(project, 1)
                    queue.append(now_s)
        project = min((p for p in waiting if waiting[p]), key=served.__getitem__, default=None)
        if project is not None:
            for other, queue in waiting.items():
                if not queue:  # who does not wait banks no credit
                    served[other] = max(served[other], served[project])
            served[project] += 1
            waits_s.append(now_s - waiting[project].pop(0))
            admission.leave(project, 1)
    assert len(waits_s) > 2490 + 5 * quiet_rate * 0.9  # always busy from when the flood has come
    assert 4 < max(waits_s) < 5
