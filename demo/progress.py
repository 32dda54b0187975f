"""Shows a job while it trains: one line per epoch, and on a terminal a bar below them."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_HEADER = "  epoch     loss   student   teacher   time left"


class TrainingProgress:
    """Prints each epoch once, as it becomes known."""

    def __init__(self, console: Console, *, epochs: int, clock: Callable[[], float]) -> None:
        """Print the header.

        Args:
            console: where to print; without a terminal, only plain lines are printed.
            epochs: how many there will be.
            clock: monotonic seconds.
        """
        self._console = console
        self._epochs = epochs
        self._clock = clock
        self._shown = 0
        self._first_seen: tuple[int, float] | None = None
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("queued", total=100.0)

    def __enter__(self) -> Self:
        self._bar.start()
        self._console.print(_HEADER, highlight=False)
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def update(self, job: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        """Show what is new.

        Args:
            job: as the service returns it.
            metrics: the figures of its finished epochs, in order.
        """
        for epoch in metrics[self._shown :]:
            self._shown += 1
            self._console.print(self._describe(epoch["metrics"]), highlight=False)
        percent = job["progress"].get("percent") or 100 * self._shown / self._epochs
        self._bar.update(self._task, completed=percent, description=job["status"])

    def _describe(self, epoch: dict[str, Any]) -> str:
        cells = [
            f"{epoch['epoch']:>3}/{self._epochs:<3}",
            f"{epoch['train_loss']:8.4f}",
            _percent(epoch["val_accuracy"]),
            _percent(epoch["teacher_val_accuracy"]),
            self._time_left(epoch["epoch"]),
        ]
        return "  " + "  ".join(cells)

    def _time_left(self, done: int) -> str:
        """Return the time that the other epochs will take, judged by those seen so far."""
        if self._first_seen is None:
            self._first_seen = (done, self._clock())
        if done == self._epochs:
            return f"{'done':>9}"
        first, first_s = self._first_seen
        if done == first:
            return f"{'…':>9}"
        left_s = (self._clock() - first_s) / (done - first) * (self._epochs - done)
        return f"{left_s:7.0f} s"


def _percent(fraction: float | None) -> str:
    return f"{'-':>8}" if fraction is None else f"{fraction:8.1%}"
