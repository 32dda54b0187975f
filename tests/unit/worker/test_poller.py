"""The worker's own doorbell: rings for what is due, and survives a broker that is gone."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker import state as worker_state
from kombu.exceptions import OperationalError

from core.platform.doorbell import DELIVER_TASK, PREDICT_TASK, TRAIN_TASK, VALIDATE_TASK
from core.settings import Settings
from worker.poller import PollerStep
from worker.tasks import SWEEP_TASK


class Timer:
    """Remembers what it is to call."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Any, tuple[Any, ...]]] = []
        self.is_cancelled = False

    def call_repeatedly(self, secs: float, fun: Any, args: tuple[Any, ...], **_kw: Any) -> "Timer":
        self.calls.append((secs, fun, args))
        return self

    def cancel(self) -> None:
        self.is_cancelled = True

    def tick(self) -> None:
        _, function, arguments = self.calls[0]
        function(*arguments)


class Broker(Celery):  # type: ignore[misc] # Celery is untyped
    """Remembers what it was asked to send."""

    def __init__(self, settings: Settings, error: Exception | None = None) -> None:
        super().__init__(set_as_current=False)
        self.conf.idat_settings = settings
        self.sent: list[str] = []
        self.error = error

    def send_task(self, name: str, **_options: Any) -> None:
        self.sent.append(name)
        if self.error is not None:
            raise self.error


def start(app: Broker) -> Timer:
    timer = Timer()
    worker = SimpleNamespace(app=app, timer=timer)
    PollerStep(worker).start(worker)
    return timer


@pytest.fixture(autouse=True)
def nothing_waits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    waiting: list[Any] = []
    monkeypatch.setattr(worker_state, "reserved_requests", waiting)
    return waiting


def test_without_a_broker_it_polls_and_with_one_it_sweeps() -> None:
    for broker_url, expected_s in (("", 1.0), ("redis://127.0.0.1/0", 15.0)):
        timer = start(Broker(Settings(broker_url=broker_url)))
        assert [interval_s for interval_s, _, _ in timer.calls] == [expected_s]


def test_every_tick_rings_for_work_and_the_sweep_comes_at_its_interval() -> None:
    app = Broker(Settings(sweep_interval_s=3600))
    timer = start(app)
    timer.tick()
    timer.tick()
    work = [TRAIN_TASK, VALIDATE_TASK, PREDICT_TASK, DELIVER_TASK]
    assert app.sent == [*work, SWEEP_TASK, *work]


def test_rings_that_still_wait_are_not_doubled(nothing_waits: list[Any]) -> None:
    app = Broker(Settings(worker_slots=2))
    timer = start(app)
    waiting = (TRAIN_TASK, VALIDATE_TASK, PREDICT_TASK, DELIVER_TASK)
    nothing_waits += [SimpleNamespace(name=name) for name in waiting]
    timer.tick()
    assert app.sent == [TRAIN_TASK, SWEEP_TASK]  # a slot for training is left
    nothing_waits.append(SimpleNamespace(name=TRAIN_TASK))
    app.sent.clear()
    timer.tick()
    assert app.sent == []


@pytest.mark.parametrize("error", [OperationalError("refused"), ConnectionResetError()])
def test_a_broker_that_is_gone_does_not_stop_the_rings(error: Exception) -> None:
    app = Broker(Settings(), error)
    timer = start(app)
    timer.tick()
    assert app.sent == [TRAIN_TASK]  # the others would only hold up the main process, each anew
    app.error = None
    timer.tick()
    assert app.sent[1:] == [TRAIN_TASK, VALIDATE_TASK, PREDICT_TASK, DELIVER_TASK, SWEEP_TASK]
