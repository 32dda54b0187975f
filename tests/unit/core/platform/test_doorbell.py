"""The doorbell never raises and never hangs, whatever the broker does."""

import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from core.platform.doorbell import (
    TRAIN_TASK,
    VALIDATE_TASK,
    BrokerDoorbell,
    QueuedDoorbell,
    SilentDoorbell,
    build_doorbell,
)

#: Far beyond the socket timeouts, far below a test's own limit.
PATIENCE_S = 60.0


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers, like a stopped broker."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        yield listener.getsockname()[1]


@pytest.fixture
def refused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port: int = closed.getsockname()[1]
    return port


def ring(broker_url: str) -> None:
    """Ring, and fail if that hangs."""
    ringing = threading.Thread(
        target=BrokerDoorbell(broker_url).ring, args=(TRAIN_TASK,), daemon=True
    )
    ringing.start()
    ringing.join(PATIENCE_S)
    assert not ringing.is_alive(), "the ring hangs"


def test_a_broker_that_is_down(refused_port: int, caplog: pytest.LogCaptureFixture) -> None:
    ring(f"redis://127.0.0.1:{refused_port}/0")
    assert "did not take a ring for job.train" in caplog.text


def test_a_broker_that_is_frozen(silent_port: int, caplog: pytest.LogCaptureFixture) -> None:
    ring(f"redis://127.0.0.1:{silent_port}/0")
    assert "did not take a ring for job.train" in caplog.text


def test_a_broker_whose_name_nobody_knows(caplog: pytest.LogCaptureFixture) -> None:
    ring("redis://broker.invalid:6379/0")
    assert "did not take a ring for job.train" in caplog.text


class HangingDoorbell:
    """Takes as long for the first ring as it is told."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.released = threading.Event()
        self.all_rung = threading.Semaphore(0)

    def ring(self, task: str) -> bool:
        assert self.released.wait(PATIENCE_S)
        self.rung.append(task)
        self.all_rung.release()
        return True


def test_a_ring_that_hangs_delays_nobody_and_the_others_follow() -> None:
    hanging = HangingDoorbell()
    doorbell = QueuedDoorbell(hanging)
    tasks = [TRAIN_TASK, VALIDATE_TASK, TRAIN_TASK]
    assert all(doorbell.ring(task) for task in tasks)
    assert hanging.rung == []
    hanging.released.set()
    for _ in tasks:
        assert hanging.all_rung.acquire(timeout=PATIENCE_S)
    assert hanging.rung == tasks


def test_rings_beyond_what_a_queue_takes_are_dropped() -> None:
    hanging = HangingDoorbell()
    doorbell = QueuedDoorbell(hanging)
    taken = [doorbell.ring(TRAIN_TASK) for _ in range(1000)]
    assert 256 <= sum(taken) <= 257  # one may be with the thread
    hanging.released.set()


def test_no_broker_is_silence(caplog: pytest.LogCaptureFixture) -> None:
    doorbell = build_doorbell("")
    assert isinstance(doorbell, SilentDoorbell)
    with caplog.at_level(logging.DEBUG):
        doorbell.ring(TRAIN_TASK)
    assert caplog.records == []
