"""Who watches a campaign, and how its runs' steps become the campaign's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from core.ml.training.observer import SilentObserver, TrainObserver
from core.ml.training.run_state import EpochMetrics


@dataclass(frozen=True)
class Stage:
    """One run of a campaign.

    Attributes:
        name: for example `run search 1`, `run`, `baseline`, `seed 2 run`, `run, retry 1`.
        is_main: whether it is the run whose model is exported.
        steps_before: steps of the campaign before its first.
        steps_per_epoch: of this run.
        total_epochs: of this run, cooldown included.
    """

    name: str
    is_main: bool
    steps_before: int
    steps_per_epoch: int
    total_epochs: int


class CampaignObserver(TrainObserver, Protocol):
    """Whoever watches a campaign: a run's observer that is also told which run it is."""

    def on_stage(self, stage: Stage) -> None:
        """Note that a run begins; its epochs and steps follow."""
        ...

    def on_note(self, message: str, data: dict[str, Any]) -> None:
        """Take a sentence for the job's log."""
        ...


class SilentCampaignObserver(SilentObserver):
    """Watches nothing and asks for nothing."""

    def on_stage(self, stage: Stage) -> None:
        """Ignore a stage."""

    def on_note(self, message: str, data: dict[str, Any]) -> None:
        """Ignore a note."""


class RunObserver:
    """Counts steps over all runs, so that progress does not start again with each."""

    def __init__(self, observer: CampaignObserver, before: int, total: int, *, step: int) -> None:
        self._observer, self._before, self._total = observer, before, total
        self.step = step

    def on_step(self, step: int, total_steps: int) -> None:  # noqa: ARG002 - of the run alone
        """Pass a step on, counted from the campaign's start."""
        self.step = step
        self._observer.on_step(self._before + step, self._total)

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Pass an epoch on."""
        self._observer.on_epoch(metrics)

    def on_checkpoint(self, path: Path, step: int) -> None:
        """Pass a checkpoint on, its step counted likewise."""
        self._observer.on_checkpoint(path, self._before + step)

    def should_checkpoint(self) -> bool:
        """Ask whether a checkpoint is due."""
        return self._observer.should_checkpoint()

    def should_stop(self) -> bool:
        """Ask whether to stop."""
        return self._observer.should_stop()
