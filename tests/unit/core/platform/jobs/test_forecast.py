"""How a queue is laid out over slots, against a simulation that goes second by second."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from core.platform.jobs.forecast import Busy, Share, play_out

SECONDS = st.integers(0, 40)


def lay_out(free_in_s: Sequence[float], duration_s: float | None, count: int) -> list[float | None]:
    """When each of the first `count` jobs of one project starts."""
    slots = [Busy("p", seconds) for seconds in free_in_s]
    queue = [f"job{number}" for number in range(count)]
    starts = play_out({"p": queue}, {"p": Share(1.0, 0, None)}, slots, duration_s)
    assert [start.job_id for start in starts] == queue
    return [start.in_s for start in starts]


def simulate(free_in_s: list[int], duration_s: int, count: int) -> list[int]:
    """Let the clock run: each second, every free slot takes the next job."""
    free = sorted(free_in_s)
    starts: list[int] = []
    second = 0
    while len(starts) < count:
        for slot, free_at in enumerate(free):
            if free_at <= second and len(starts) < count:
                starts.append(second)
                free[slot] = second + duration_s
        second += 1
    return starts


@given(
    free_in_s=st.lists(SECONDS, min_size=1, max_size=5),
    duration_s=st.integers(1, 30),
    count=st.integers(0, 20),
)
def test_agrees_with_a_clock(free_in_s: list[int], duration_s: int, count: int) -> None:
    assert lay_out(free_in_s, duration_s, count) == simulate(free_in_s, duration_s, count)


@given(free_in_s=st.lists(SECONDS, max_size=5), count=st.integers(0, 8))
def test_of_an_unknown_duration_each_slot_tells_one_start(free_in_s: list[int], count: int) -> None:
    starts = lay_out(free_in_s, None, count)
    known = sorted(free_in_s)[:count]
    assert starts == known + [None] * (count - len(known))


@given(free_in_s=st.lists(st.floats(-1e6, 0), min_size=1, max_size=3))
def test_no_start_is_in_the_past(free_in_s: list[float]) -> None:
    assert lay_out(free_in_s, 5.0, len(free_in_s)) == [0.0] * len(free_in_s)


def test_without_slots_nothing_is_known() -> None:
    assert lay_out([], 5.0, 2) == [None, None]
