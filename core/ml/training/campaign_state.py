"""What a campaign has reached: the outcomes of its runs, and their way into checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.load import LoadedBackbone
from core.ml.training.checkpoint import CheckpointFolder, Checkpoints, Snapshot
from core.ml.training.evaluate import Evaluation
from core.ml.training.loop import CollapsedError, DivergedError, TrainResult, build_trainee_model
from core.ml.training.plan import TrainPlan
from core.ml.training.run_state import EpochMetrics

_SPLITS = ("val", "teacher_val", "test", "teacher_test")


class Outcome(StrEnum):
    """How a run ended."""

    DONE = "done"
    DIVERGED = "diverged"
    COLLAPSED = "collapsed"


@dataclass(frozen=True, eq=False)
class RunOutcome:
    """A run that is over.

    Attributes:
        outcome: how it ended.
        seed: of the run.
        learning_rate: its peak.
        message: what went wrong; empty where nothing did.
        best_epoch: from 0.
        evaluations: figures by split; None where not measured.
        history: the figures of every epoch.
        steps: how many were taken.
        collapsed_epoch: as in `TrainResult`.
        weights: adapters and heads of the best epoch by `role.name`; empty where not kept.
    """

    outcome: Outcome
    seed: int
    learning_rate: float
    message: str
    best_epoch: int
    evaluations: Mapping[str, Evaluation | None]
    history: list[EpochMetrics]
    steps: int
    collapsed_epoch: int | None
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, plan: TrainPlan, result: TrainResult, *, keep_weights: bool) -> Self:
        """Return the outcome of a run that went to its end."""
        models = {"student": result.student, "teacher": result.teacher}
        weights = {
            f"{role}.{name}": parameter.detach()
            for role, model in models.items()
            if model is not None
            for name, parameter in model.trainable_parameters().items()
        }
        return cls(
            outcome=Outcome.DONE,
            seed=plan.seed,
            learning_rate=plan.learning_rate,
            message="",
            best_epoch=result.best_epoch,
            evaluations={split: getattr(result, split) for split in _SPLITS},
            history=result.history,
            steps=result.steps,
            collapsed_epoch=result.collapsed_epoch,
            weights=weights if keep_weights else {},
        )

    @classmethod
    def failed(cls, outcome: Outcome, plan: TrainPlan, error: DivergedError, *, steps: int) -> Self:
        """Return the outcome of a run that diverged or collapsed after so many steps."""
        return cls(
            outcome=outcome,
            seed=plan.seed,
            learning_rate=plan.learning_rate,
            message=error.message,
            best_epoch=0,
            evaluations=dict.fromkeys(_SPLITS),
            history=[],
            steps=steps,
            collapsed_epoch=None,
            weights={},
        )

    @property
    def val(self) -> Evaluation | None:
        """The student's figures on the validation split."""
        return self.evaluations["val"]

    def raise_if_diverged(self) -> None:
        """Raise what the run raised, if it did.

        Raises:
            DivergedError: or `CollapsedError`.
        """
        if self.outcome is not Outcome.DONE:
            kind = CollapsedError if self.outcome is Outcome.COLLAPSED else DivergedError
            raise kind(self.message)

    def rebuild(
        self, plan: TrainPlan, student: LoadedBackbone, teacher: LoadedBackbone | None
    ) -> TrainResult:
        """Return the run's result with its models, from the weights that were kept."""
        return TrainResult(
            student=self._rebuild_model(plan, "student", student),
            teacher=None if teacher is None else self._rebuild_model(plan, "teacher", teacher),
            best_epoch=self.best_epoch,
            val=self.evaluations["val"],
            teacher_val=self.evaluations["teacher_val"],
            test=self.evaluations["test"],
            teacher_test=self.evaluations["teacher_test"],
            history=self.history,
            steps=self.steps,
            collapsed_epoch=self.collapsed_epoch,
        )

    def _rebuild_model(self, plan: TrainPlan, role: str, backbone: LoadedBackbone) -> AdaptedModel:
        model = build_trainee_model(plan, role, backbone)
        prefix = f"{role}."
        model.load_adapter_state(
            {n.removeprefix(prefix): w for n, w in self.weights.items() if n.startswith(prefix)}
        )
        return model

    def to_summary(self) -> dict[str, Any]:
        """Return the figures that are published; epochs count from 1."""
        figures: dict[str, Any] = {
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "best_epoch": self.best_epoch + 1,
        }
        for split, evaluation in self.evaluations.items():
            figures[f"{split}_accuracy"] = evaluation and evaluation.accuracy
            figures[f"{split}_loss"] = evaluation and evaluation.loss
        if self.collapsed_epoch is not None:
            figures["collapsed_epoch"] = self.collapsed_epoch + 1
        return figures

    def to_json(self) -> dict[str, Any]:
        """Return everything but the weights as plain values."""
        return {
            "outcome": self.outcome.value,
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "message": self.message,
            "best_epoch": self.best_epoch,
            "evaluations": {
                split: None
                if e is None
                else {"images": e.images, "correct": e.correct, "loss": e.loss}
                for split, e in self.evaluations.items()
            },
            "history": [metrics.to_json() for metrics in self.history],
            "steps": self.steps,
            "collapsed_epoch": self.collapsed_epoch,
        }

    @classmethod
    def from_json(cls, stored: dict[str, Any], weights: Mapping[str, Tensor]) -> Self:
        """Read the plain values back."""
        return cls(
            **{
                **stored,
                "outcome": Outcome(stored["outcome"]),
                "evaluations": {
                    split: e and Evaluation(**e) for split, e in stored["evaluations"].items()
                },
                "history": [EpochMetrics(**metrics) for metrics in stored["history"]],
                "weights": weights,
            }
        )


class CampaignCheckpoints:
    """One file for the run in progress and for every run before it.

    Args:
        folder: where the files are kept; None keeps none.
        fingerprint: names the campaign; checkpoints of another are refused.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self._folder = None if folder is None else CheckpointFolder(folder, fingerprint)
        self._outcomes: dict[str, RunOutcome] = {}
        self._resumed: tuple[str, Snapshot] | None = None
        #: Steps of all runs that are over, whatever came of them.
        self.steps_done = 0
        latest = self._folder.find_latest() if self._folder is not None else None
        if latest is not None:
            self._restore(latest)

    def find_outcome(self, run: str) -> RunOutcome | None:
        """Return how a run ended, or None if it has not."""
        return self._outcomes.get(run)

    def of_run(self, run: str) -> Checkpoints | None:
        """Return where a run keeps its own snapshots; None keeps none."""
        return None if self._folder is None else _RunCheckpoints(self, run)

    def finish_run(self, run: str, outcome: RunOutcome) -> None:
        """Note how a run ended; the next snapshot will hold it."""
        self._outcomes[run] = outcome
        self.steps_done += outcome.steps

    def save(self, run: str, snapshot: Snapshot) -> Path:
        """Keep a snapshot of the run in progress."""
        assert self._folder is not None
        tensors = {f"run.{name}": tensor for name, tensor in snapshot.tensors.items()}
        for number, outcome in enumerate(self._outcomes.values()):
            for name, tensor in outcome.weights.items():
                tensors[f"done.{number}.{name}"] = tensor
        values = {
            "run": run,
            "run_step": snapshot.step,
            "run_values": dict(snapshot.values),
            "done": {name: outcome.to_json() for name, outcome in self._outcomes.items()},
        }
        return self._folder.save(Snapshot(self.steps_done + snapshot.step, tensors, values))

    def resumed_step(self, run: str) -> int:
        """Return the step within `run` that the campaign was resumed from, else 0."""
        snapshot = self.find_resumed(run)
        return 0 if snapshot is None else snapshot.step

    def find_resumed(self, run: str) -> Snapshot | None:
        """Return the snapshot that the campaign was resumed from, if it is this run's."""
        if self._resumed is None or self._resumed[0] != run:
            return None
        return self._resumed[1]

    def _restore(self, latest: Snapshot) -> None:
        values = latest.values
        for number, (name, stored) in enumerate(values["done"].items()):
            weights = _strip(latest.tensors, f"done.{number}.")
            self.finish_run(name, RunOutcome.from_json(stored, weights))
        tensors = _strip(latest.tensors, "run.")
        snapshot = Snapshot(values["run_step"], tensors, values["run_values"])
        self._resumed = (values["run"], snapshot)


class _RunCheckpoints:
    def __init__(self, campaign: CampaignCheckpoints, run: str) -> None:
        self._campaign, self._run = campaign, run

    def save(self, snapshot: Snapshot) -> Path:
        return self._campaign.save(self._run, snapshot)

    def find_latest(self) -> Snapshot | None:
        return self._campaign.find_resumed(self._run)


def _strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
