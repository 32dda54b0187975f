"""The two protocols: what is trained on what, what is chosen by what, and when the test is read."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.vtab.learners import Fit, Learner
from benchmarks.vtab.lists import ListName
from benchmarks.vtab.methods import Method
from benchmarks.vtab.settings import Mode, Settings, shorten_plan
from core.catalog.methods import Precision
from core.catalog.recipes import DatasetRecipe
from core.clock import monotonic_s
from core.ml.data.atomic import replace_file
from core.ml.training.evaluate import Evaluation
from core.ml.training.loop import DivergedError
from core.ml.training.plan import TrainPlan

OK, DIVERGED = "ok", "diverged"


@dataclass(frozen=True)
class Cell:
    """One entry of the table that is to be filled.

    Attributes:
        recipe: of the dataset.
        method: what is trained.
        seed: of every random draw.
        num_classes: outputs of the heads.
    """

    recipe: DatasetRecipe
    method: Method
    seed: int
    num_classes: int

    def __str__(self) -> str:
        return f"{self.recipe.code_name} {self.method.name} seed {self.seed}"


def build_protocol(
    cell: Cell, learner: Learner, settings: Settings, precision: Precision, chosen_dir: Path
) -> "Protocol":
    """Return the protocol that the settings ask for.

    Args:
        cell: what to fill.
        learner: of the cell's dataset and method.
        settings: what was asked for.
        precision: in which to compute.
        chosen_dir: where the runs that choose a learning rate are kept, for other seeds.
    """
    kind = _Strict if settings.mode is Mode.STRICT else _Paper
    return kind(cell, learner, settings, precision, chosen_dir)


class Protocol(ABC):
    """How one cell is filled."""

    def __init__(
        self,
        cell: Cell,
        learner: Learner,
        settings: Settings,
        precision: Precision,
        chosen_dir: Path,
    ) -> None:
        self.cell, self.learner, self.settings = cell, learner, settings
        self.precision, self.chosen_dir = precision, chosen_dir
        self._final: tuple[TrainPlan, ListName, ListName | None] | None = None

    @abstractmethod
    def run(self) -> dict[str, Any]:
        """Return what the row says: settings used, accuracies, parameters, seconds.

        Raises:
            TrainingStoppedError: that was asked for; the same call goes on from there.
        """

    def forget(self) -> None:
        """Remove what `run` would go on from: the row is safe."""
        if self._final is not None:
            self.learner.forget(*self._final)

    def fit_finally(
        self, plan: TrainPlan, trained: ListName, measured: ListName | None, *, label: str
    ) -> Fit:
        """Train what is reported."""
        self._final = (plan, trained, measured)
        return self.learner.fit(plan, trained, measured, label=label)

    def build_plan(self, learning_rate: float, seed: int) -> TrainPlan:
        """Return the plan of the whole schedule."""
        return self.settings.build_plan(
            self.cell.method,
            self.cell.recipe,
            num_classes=self.cell.num_classes,
            learning_rate=learning_rate,
            seed=seed,
            precision=self.precision,
        )

    def describe(self, plan: TrainPlan, fit: Fit, seconds: dict[str, float]) -> dict[str, Any]:
        """Return what both protocols say of a finished fit."""
        return {
            "status": OK,
            "learning_rate": plan.learning_rate,
            "weight_decay": plan.weight_decay,
            "drop_path": plan.drop_path,
            "epochs_run": fit.epochs,
            "collapsed_epoch": _from_one(fit.collapsed_epoch),
            "trainable_parameters": {
                role: _count_parameters(model) for role, model in fit.models.items()
            },
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
        }

    def describe_divergence(self, error: DivergedError, learning_rate: float) -> dict[str, Any]:
        """Return what a row says of a fit that became no finite number: there is no accuracy."""
        return {
            "status": DIVERGED,
            "error": error.message,
            "learning_rate": learning_rate,
            "weight_decay": self.settings.weight_decay(self.cell.recipe),
            "drop_path": self.settings.drop_path(self.cell.recipe, self.cell.method),
            "test": None,
        }


class _Paper(Protocol):
    """The released code's protocol: the test list stands where a validation list belongs.

    So every epoch is tested, the best of them is the figure that papers print, and the last one is
    the figure that did not choose itself.
    """

    def run(self) -> dict[str, Any]:
        started_s = monotonic_s()
        rate = self.cell.recipe.learning_rate
        plan = self.build_plan(rate, self.cell.seed)
        try:
            fit = self.fit_finally(plan, ListName.TRAIN_VAL, ListName.TEST, label=str(self.cell))
        except DivergedError as error:
            return self.describe_divergence(error, rate)
        assert fit.best is not None, "every epoch was tested"
        last = fit.history[-1]
        described = self.describe(plan, fit, {"total": monotonic_s() - started_s})
        described["test"] = {
            "images": fit.best.images,
            "accuracy": last.accuracy,
            "last_epoch_accuracy": last.accuracy,
            "teacher_last_epoch_accuracy": last.teacher_accuracy,
            "best_on_test_accuracy": fit.best.accuracy,
            "best_on_test_epoch": fit.best_epoch + 1,
            "accuracy_by_epoch": [epoch.accuracy for epoch in fit.history],
        }
        return described


class _Strict(Protocol):
    """Learning rate and epoch chosen on val200, then all 1,000 images, then one look at the test.

    The learning rate is chosen once, with a seed of its own; every seed refits with it. The refit
    follows the learning rates of the whole schedule and ends after the chosen epoch.
    """

    def run(self) -> dict[str, Any]:
        started_s = monotonic_s()
        recipe = self.cell.recipe
        candidates = [self._try(rate) for rate in self.settings.rates(recipe)]
        fine = [candidate for candidate in candidates if candidate["status"] == OK]
        if not fine:
            error = DivergedError("every learning rate of the grid diverged")
            return self.describe_divergence(error, candidates[0]["learning_rate"]) | {
                "selection": candidates
            }
        # Among equals the lower loss, then the lower rate: the first of an ascending grid.
        best = max(fine, key=lambda each: (each["val_accuracy"], -each["val_loss"]))
        chosen_s = monotonic_s()
        whole = self.build_plan(best["learning_rate"], self.cell.seed)
        plan = shorten_plan(whole, best["epochs"])
        label = f"{self.cell}, refit on all"
        try:
            fit = self.fit_finally(plan, ListName.TRAIN_VAL, None, label=label)
        except DivergedError as error:
            return self.describe_divergence(error, plan.learning_rate) | {"selection": candidates}
        fitted_s = monotonic_s()
        test = self.learner.measure(fit, ListName.TEST)
        seconds = {
            "selection": sum(each["seconds"] for each in candidates),
            "refit": fitted_s - chosen_s,
            "test": monotonic_s() - fitted_s,
            "total": monotonic_s() - started_s,
        }
        described = self.describe(plan, fit, seconds)
        teacher = test.get("teacher")
        described["selection"] = candidates
        described["test"] = {
            "images": test["student"].images,
            "accuracy": test["student"].accuracy,
            "last_epoch_accuracy": test["student"].accuracy,
            "teacher_last_epoch_accuracy": teacher and teacher.accuracy,
        }
        return described

    def _try(self, learning_rate: float) -> dict[str, Any]:
        """Train on train800 with one rate and see val200; what was seen before is read again."""
        plan = self.build_plan(learning_rate, self.settings.selection_seed)
        lists = (ListName.TRAIN, ListName.VAL)
        path = self.chosen_dir / f"{self.learner.fingerprint(plan, *lists)[:32]}.json"
        if path.exists():
            known: dict[str, Any] = json.loads(path.read_bytes())
            return known
        started_s = monotonic_s()
        label = f"{self.cell}, choosing, rate {learning_rate:g}"
        candidate: dict[str, Any] = {"learning_rate": learning_rate}
        try:
            fit = self.learner.fit(plan, *lists, label=label)
        except DivergedError as error:
            candidate |= {"status": DIVERGED, "error": error.message}
        else:
            best: Evaluation | None = fit.best
            assert best is not None, "every epoch was measured"
            candidate |= {
                "status": OK,
                "epochs": fit.best_epoch + 1,
                "val_accuracy": best.accuracy,
                "val_loss": best.loss,
                "last_val_accuracy": fit.history[-1].accuracy,
                "collapsed_epoch": _from_one(fit.collapsed_epoch),
            }
        candidate["seconds"] = round(monotonic_s() - started_s, 2)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(json.dumps(candidate).encode())
        self.learner.forget(plan, *lists)
        return candidate


def _from_one(epoch: int | None) -> int | None:
    """Return an epoch as rows count it."""
    return None if epoch is None else epoch + 1


def _count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Return the trainable numbers of adapters and head; the model has no others of its own."""
    named = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in named.values())
    head = sum(
        parameter.numel()
        for name, parameter in named.items()
        if name.startswith("head.") or isinstance(model, torch.nn.Linear)
    )
    return {"adapter": total - head, "head": head, "total": total}
