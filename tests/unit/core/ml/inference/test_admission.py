"""How many images may be under way: the fit of the batch times, the limit, the shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ml.inference.admission import (
    Admission,
    BatchTimes,
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


def test_the_limit_is_throughput_times_the_time_that_is_left():
    took_s = 0.01 + 0.002 * 8
    assert build().limit() == int(8 / took_s * (1.0 - took_s))


def test_the_limit_follows_batches_that_are_kept_small():
    times = fitted()
    times.size = 2
    took_s = 0.01 + 0.002 * 2
    assert build(times=times).limit() == int(2 / took_s * (1.0 - took_s))


def test_the_limit_knows_when_decoding_is_slower():
    took_s = 0.01 + 0.002 * 8
    assert build(find_rate=lambda: 20.0).limit() == int(20 * (1.0 - took_s))


def test_before_the_first_batch_two_batches_may_wait():
    assert build(times=BatchTimes()).limit() == 16


def test_a_network_slower_than_the_deadline_is_used_nonetheless():
    assert build(deadline_s=0.001).limit() == 8


def test_the_limit_never_exceeds_the_setting():
    assert build(max_images=5).limit() == 5


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
