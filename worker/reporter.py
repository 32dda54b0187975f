"""What a trainer tells its supervisor while it trains."""

import os
import threading
from pathlib import Path
from typing import Any

from core.clock import monotonic_s
from core.ml.training.campaign_observer import Stage
from core.ml.training.run_state import EpochMetrics
from worker.child import PROGRESS_INTERVAL_S, send


class Reporter:
    """Watches a campaign for the supervisor (`core.ml.training.campaign.CampaignObserver`)."""

    def __init__(
        self, *, outbox: Path, stop: threading.Event, checkpoint_interval_s: float
    ) -> None:
        """Start the clocks.

        Args:
            outbox: where checkpoints lie until the supervisor has stored them.
            stop: set when the supervisor asks to hand the job back.
            checkpoint_interval_s: least time between two checkpoints; 0 makes one after every step.
        """
        self._outbox = outbox
        self._stop = stop
        self._checkpoint_interval_s = checkpoint_interval_s
        self._started_s = monotonic_s()
        self._first_step: int | None = None
        self._checkpoint_s = self._started_s
        self._progress_s = 0.0
        self._stage: Stage | None = None
        self._last_epoch: dict[str, Any] = {}
        self._last_step: dict[str, Any] = {}
        outbox.mkdir(exist_ok=True)

    def on_stage(self, stage: Stage) -> None:
        """Say in the log which run begins, where there are several."""
        is_first = self._stage is None
        self._stage = stage
        self._last_epoch = {}
        if not (is_first and stage.is_main):
            send({"type": "log", "message": f"{stage.name} begins", "data": {"run": stage.name}})

    def on_note(self, message: str, data: dict[str, Any]) -> None:
        """Pass a sentence on to the job's log."""
        send({"type": "log", "message": message, "data": data})

    def on_step(self, step: int, total_steps: int) -> None:
        """Send progress, at most twice a second."""
        now_s = monotonic_s()
        if self._first_step is None:
            self._first_step, self._started_s = step, now_s
        if now_s - self._progress_s < PROGRESS_INTERVAL_S and step < total_steps:
            return
        self._progress_s = now_s
        done = step - self._first_step
        eta_s = (now_s - self._started_s) / done * (total_steps - step) if done else None
        assert self._stage is not None, "a run begins before its steps"
        step_of_run = step - self._stage.steps_before
        epoch = (step_of_run - 1) // self._stage.steps_per_epoch + 1
        self._last_step = {
            "run": self._stage.name,
            # The epoch that is being worked on, from 1, as people count.
            "epoch": min(epoch, self._stage.total_epochs),
            "total_epochs": self._stage.total_epochs,
            "step": step,
            "total_steps": total_steps,
            "percent": round(100 * step / total_steps, 1),
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }
        self._send_progress("training")

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Send the figures of an epoch of the main run, and show them with the next progress."""
        figures = {**metrics.to_json(), "epoch": metrics.epoch + 1}
        shown = ("train_loss", "val_accuracy", "teacher_val_accuracy")
        self._last_epoch = {name: figures[name] for name in shown}
        if self._stage is not None and self._stage.is_main:
            send({"type": "epoch", "metrics": figures})

    def on_export(self) -> None:
        """Send that training is over; where it stood stays in the job's progress for good."""
        self._send_progress("exporting")

    def _send_progress(self, phase: str) -> None:
        send({"type": "progress", "phase": phase, **self._last_step, **self._last_epoch})

    def on_checkpoint(self, path: Path, step: int) -> None:
        """Offer a checkpoint to the supervisor, which removes it from the outbox."""
        self._checkpoint_s = monotonic_s()
        # A second name for the file: the run's own folder keeps only the newest two.
        offered = self._outbox / path.name
        offered.unlink(missing_ok=True)
        os.link(path, offered)
        send({"type": "checkpoint", "path": str(offered), "step": step})

    def should_checkpoint(self) -> bool:
        """Say whether the interval has passed."""
        return monotonic_s() - self._checkpoint_s >= self._checkpoint_interval_s

    def should_stop(self) -> bool:
        """Say whether the supervisor asked to hand the job back."""
        return self._stop.is_set()
