"""Stopping a run cleanly, and telling how far it is."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from core.clock import monotonic_s
from core.ml.training.loop import TrainingStoppedError
from core.ml.training.run_state import EpochMetrics

_SAY_EVERY_S = 15.0
_SHOW_EVERY_S = 0.5
_MINUTE_S = 60
_HOUR_S = 3600


class StopSignal:
    """Turns the first Ctrl-C, or SIGTERM, into a request; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self.is_set = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Leave if that was asked for.

        Raises:
            TrainingStoppedError: it was.
        """
        if self.is_set:
            raise TrainingStoppedError("stopped")

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Console:
    """Lines for a person: kept ones, and one that is written over where the output is a terminal.

    Elsewhere, in a log file, the passing line is written now and then.
    """

    def __init__(self) -> None:
        """Take standard output as it is."""
        self._is_terminal = sys.stdout.isatty()
        self._shown_s = -_SAY_EVERY_S
        self._width = 0

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self._clear()
        print(line, flush=True)

    def show(self, line: str) -> None:
        """Write a line that the next one replaces; most of them are left out."""
        pause_s = _SHOW_EVERY_S if self._is_terminal else _SAY_EVERY_S
        if monotonic_s() - self._shown_s < pause_s:
            return
        self._shown_s = monotonic_s()
        self._clear()
        if self._is_terminal:
            print(line, end="", flush=True)
            self._width = len(line)
        else:
            print(line, flush=True)

    def _clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="")
            self._width = 0


class RunWatcher:
    """Watches one training run (`core.ml.training.observer.TrainObserver`)."""

    def __init__(
        self,
        label: str,
        stop: StopSignal,
        show: Callable[[str], None],
        *,
        checkpoint_every_s: float,
    ) -> None:
        """Start the clocks.

        Args:
            label: names the run in its lines.
            stop: when to leave.
            show: takes a line of progress.
            checkpoint_every_s: least time between two checkpoints.
        """
        self._label, self._stop, self._show = label, stop, show
        self._checkpoint_every_s = checkpoint_every_s
        self._started_s = self._checkpoint_s = monotonic_s()
        self._first_step: int | None = None
        self._is_last_step = False
        self._figures = ""

    def on_step(self, step: int, total_steps: int) -> None:
        """Show how far it is and how long it will take."""
        self._is_last_step = step == total_steps
        now_s = monotonic_s()
        if self._first_step is None:
            self._first_step, self._started_s = step, now_s
        done = step - self._first_step
        left = ""
        if done:
            left_s = (now_s - self._started_s) / done * (total_steps - step)
            left = f", {describe_seconds(left_s)} left"
        self._show(f"  {self._label}: step {step}/{total_steps}{self._figures}{left}")

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Remember the figures, and leave between two epochs if that was asked for."""
        self._figures = f", loss {metrics.train_loss:.3f}"
        if metrics.val_accuracy is not None:
            self._figures += f", {metrics.val_accuracy:.1%}"

    def on_checkpoint(self, path: Path, step: int) -> None:  # noqa: ARG002 - the protocol's
        """Count the interval from here."""
        self._checkpoint_s = monotonic_s()

    def should_checkpoint(self) -> bool:
        """Say whether one is due; always after the last step: what follows is one evaluation."""
        return self._is_last_step or monotonic_s() - self._checkpoint_s >= self._checkpoint_every_s

    def should_stop(self) -> bool:
        """Say whether to checkpoint and leave."""
        return self._stop.is_set


def describe_seconds(seconds: float) -> str:
    """Return a time for people, for example `2 h 5 min`."""
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"
