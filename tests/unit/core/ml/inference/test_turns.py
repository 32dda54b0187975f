import threading
from types import SimpleNamespace

import pytest

from core.ml.inference.turns import Turns


def test_first_come_first_served():
    turns, order = Turns(), []
    queued = [threading.Event() for _ in range(5)]

    def ask(number):
        with turns.take():
            order.append(number)

    threads = []
    with turns.take():
        for number in range(5):
            thread = threading.Thread(target=ask, args=(number,))
            thread.start()
            threads.append(thread)
            while len(turns._waiting) <= number:
                queued[number].wait(0.001)
        order.append("holder")
    for thread in threads:
        thread.join(timeout=30)
    assert order == ["holder", 0, 1, 2, 3, 4]


def test_one_at_a_time():
    turns, inside, most = Turns(), [], []

    def ask():
        for _ in range(200):
            with turns.take():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(most) == 800
    assert max(most) == 1


def test_an_error_hands_the_turn_on():
    turns = Turns()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turns.take():
            _ = 1 // 0
    with turns.take():
        assert turns._running == 1
    assert turns._running == 0


def start(turns, sharing, order, name):
    """Take a turn in a thread; return what shows that it has come, and what ends it."""
    begun, may_end = threading.Event(), threading.Event()

    def ask():
        with turns.take(sharing):
            order.append(name)
            begun.set()
            assert may_end.wait(30)

    waiting = len(turns._waiting)
    thread = threading.Thread(target=ask)
    thread.start()
    while not begun.is_set() and len(turns._waiting) == waiting:
        begun.wait(0.001)
    return SimpleNamespace(begun=begun, may_end=may_end, thread=thread)


def test_equals_run_side_by_side_until_somebody_else_waits():
    turns, order, bank, other = Turns(), [], object(), object()
    first = start(turns, bank, order, "first")
    beside = start(turns, bank, order, "beside")
    assert first.begun.is_set()
    assert beside.begun.is_set()
    differing = start(turns, other, order, "differing")
    late = start(turns, bank, order, "late")
    alone = start(turns, None, order, "alone")
    also_alone = start(turns, None, order, "also alone")
    first.may_end.set()
    first.thread.join(30)
    assert order == ["first", "beside"], "somebody did not wait for the second"
    for name, asked in (("beside", beside), ("differing", differing), ("late", late)):
        assert name == order[-1]
        asked.may_end.set()
        asked.thread.join(30)
        if name == "beside":
            assert differing.begun.wait(30)
        if name == "differing":
            assert late.begun.wait(30)
    assert alone.begun.wait(30)
    assert not also_alone.begun.is_set()
    for asked in (alone, also_alone):
        asked.may_end.set()
        asked.thread.join(30)
    assert order == ["first", "beside", "differing", "late", "alone", "also alone"]


def test_those_who_waited_with_equals_begin_together():
    turns, order, bank = Turns(), [], object()
    alone = start(turns, None, order, "alone")
    equals = [start(turns, bank, order, number) for number in range(3)]
    alone.may_end.set()
    assert all(asked.begun.wait(30) for asked in equals)
    for asked in equals:
        asked.may_end.set()
        asked.thread.join(30)
