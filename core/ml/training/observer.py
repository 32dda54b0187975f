"""Who watches a training run: how it reports, and how it is asked to stop."""

from pathlib import Path
from typing import Protocol

from core.ml.training.run_state import EpochMetrics


class TrainObserver(Protocol):
    """Whoever watches a run. Called from the training thread, so every method must be quick."""

    def on_step(self, step: int, total_steps: int) -> None:
        """Note that `step` of `total_steps` steps were issued; a GPU may still work on them."""
        ...

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Take the figures of a finished epoch; after a resume, the same epoch may come again."""
        ...

    def on_checkpoint(self, path: Path, step: int) -> None:
        """Note that a checkpoint of `step` steps is safely on disk."""
        ...

    def should_checkpoint(self) -> bool:
        """Say, after every step, whether a checkpoint is due."""
        ...

    def should_stop(self) -> bool:
        """Say, after every step, whether to checkpoint and leave."""
        ...


class SilentObserver:
    """Watches nothing and asks for nothing."""

    def on_step(self, step: int, total_steps: int) -> None:
        """Ignore a step."""

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Ignore an epoch."""

    def on_checkpoint(self, path: Path, step: int) -> None:
        """Ignore a checkpoint."""

    def should_checkpoint(self) -> bool:
        """Want none."""
        return False

    def should_stop(self) -> bool:
        """Never stop."""
        return False
