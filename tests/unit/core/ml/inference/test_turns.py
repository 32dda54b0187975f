import threading

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
        assert turns._is_taken
    assert not turns._is_taken
