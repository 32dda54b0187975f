"""What a run of the benchmark is asked to do, and the training plans that follow from it."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.vtab.methods import Method
from core.catalog.methods import AdapterKind, DistillationLoss, Precision, Recipe
from core.catalog.pairs import PAIRS
from core.catalog.recipes import DatasetRecipe
from core.errors import InvalidError
from core.ml.training.plan import TrainPlan, build_plan

DEFAULT_PAIR = "vit-s16-b16-in21k"
#: The recipe's rate times these is the grid of `strict`. The released rates were tuned for another
#: method, and the largest of them lets adapters diverge: the grid reaches far down.
RATE_FACTORS = (0.1, 0.3, 1.0, 3.0)
#: With `Tuning.COMMON` the grid of every dataset.
COMMON_RATES = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
COMMON_WEIGHT_DECAY = 5e-5
MAX_RATE = 1.0


class Mode(StrEnum):
    """The protocol; the words of docs/vtab.md."""

    STRICT = "strict"  #: settings chosen on val200, refit on all 1,000, one look at the test split
    PAPER = "paper"  #: the released code's: fixed settings, the test split after every epoch


class Tuning(StrEnum):
    """Where weight decay, stochastic depth and the grid of learning rates come from."""

    RECIPE = "recipe"  #: from the dataset's recipe
    COMMON = "common"  #: the same for all datasets, as VTAB asks


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The schedule; by default the released code's.

    Attributes:
        epochs: of warm-up and cosine.
        warmup_epochs: of these, the linear part.
        cooldown_epochs: further ones at the lowest rate.
        batch_size: images per step.
        drop_last: whether a last, smaller batch is left out.
    """

    epochs: int = 100
    warmup_epochs: int = 10
    cooldown_epochs: int = 10
    batch_size: int = 64
    drop_last: bool = True

    @property
    def is_official(self) -> bool:
        """Whether it is the released code's."""
        return self == Schedule()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides results, besides data, weights and seed.

    Attributes:
        mode: the protocol.
        pair: name of the pair, empty where the networks were named one by one.
        student: timm name.
        teacher: timm name, for iDAT.
        hidden_dim: bottleneck width.
        scale: of the parallel placements.
        temperature: of `kl`.
        loss_weight: of the distillation loss.
        schedule: epochs and batches.
        precision: `auto`, `fp32` or `bf16`.
        tuning: where the rest comes from.
        learning_rates: the grid of `strict`, the same for all datasets; None takes the tuning's.
        selection_seed: of the runs that choose the learning rate, whatever seed is then refit.
    """

    mode: Mode = Mode.STRICT
    pair: str = DEFAULT_PAIR
    student: str = PAIRS[DEFAULT_PAIR].student
    teacher: str = PAIRS[DEFAULT_PAIR].teacher
    hidden_dim: int = 4
    scale: float = 0.1
    temperature: float = 5.0
    loss_weight: float = 1.0
    schedule: Schedule = Schedule()
    precision: str = "auto"
    tuning: Tuning = Tuning.RECIPE
    learning_rates: tuple[float, ...] | None = None
    selection_seed: int = 0

    def __post_init__(self) -> None:
        if self.mode is Mode.PAPER and (self.learning_rates or self.tuning is Tuning.COMMON):
            raise InvalidError(
                "the mode 'paper' takes every setting from the recipes; leave out --learning-rates "
                "and --tuning, or use the mode 'strict'"
            )
        wrong = [rate for rate in self.learning_rates or () if not 0 < rate <= MAX_RATE]
        if wrong:
            raise InvalidError(f"the learning rate {wrong[0]:g} is not within 0 to {MAX_RATE:g}")

    def rates(self, recipe: DatasetRecipe) -> tuple[float, ...]:
        """Return the learning rates that `strict` tries on a dataset, ascending."""
        if self.learning_rates is not None:
            return tuple(sorted(set(self.learning_rates)))
        if self.tuning is Tuning.COMMON:
            return COMMON_RATES
        # Rounded, so that a rate is the same number wherever it is computed or typed.
        rates = {float(f"{recipe.learning_rate * factor:.6g}") for factor in RATE_FACTORS}
        return tuple(sorted(min(rate, MAX_RATE) for rate in rates))

    def weight_decay(self, recipe: DatasetRecipe) -> float:
        """Return the weight decay of a dataset."""
        return COMMON_WEIGHT_DECAY if self.tuning is Tuning.COMMON else recipe.weight_decay

    def drop_path(self, recipe: DatasetRecipe, method: Method) -> float:
        """Return the stochastic depth of a dataset; a probe on fixed features has none."""
        if method.kind is None or self.tuning is Tuning.COMMON:
            return 0.0
        return recipe.drop_path

    def describe(self, method: Method, precision: str) -> dict[str, Any]:
        """Return what decides the rows of this method, the same for all datasets.

        Args:
            method: the rows'.
            precision: in which they are computed.
        """
        described: dict[str, Any] = {"student": self.student, "precision": precision}
        described |= dataclasses.asdict(self.schedule)
        if method.has_teacher:
            described |= {"teacher": self.teacher, "loss_weight": self.loss_weight}
        if method.loss is DistillationLoss.KL:
            described["temperature"] = self.temperature
        if method.kind is not None:
            described["hidden_dim"] = self.hidden_dim
        if method.kind in (AdapterKind.PARALLEL, AdapterKind.PARALLEL_SHARED):
            described["scale"] = self.scale
        if self.mode is Mode.STRICT:
            described |= {"tuning": self.tuning.value, "selection_seed": self.selection_seed}
            if self.learning_rates is not None:
                described["learning_rates"] = sorted(set(self.learning_rates))
            elif self.tuning is Tuning.COMMON:
                described["learning_rates"] = list(COMMON_RATES)
            else:
                described["learning_rates"] = {"recipe_times": list(RATE_FACTORS)}
        return described

    def build_plan(
        self,
        method: Method,
        recipe: DatasetRecipe,
        *,
        num_classes: int,
        learning_rate: float,
        seed: int,
        precision: Precision,
    ) -> TrainPlan:
        """Return the plan of one training run.

        Raises:
            InvalidError: a setting is out of range.
        """
        plan = build_plan(
            method=method.type,
            kind=method.kind or AdapterKind.LINEAR_PROBE,
            hidden_dim=self.hidden_dim,
            scale=self.scale,
            num_classes=num_classes,
            learning_rate=learning_rate,
            weight_decay=self.weight_decay(recipe),
            drop_path=self.drop_path(recipe, method),
            precision=precision,
            seed=seed,
            loss=method.loss or DistillationLoss.MSE,
            loss_weight=self.loss_weight,
            temperature=self.temperature,
            recipe=Recipe.OFFICIAL,
        )
        if self.schedule.is_official:
            return plan
        schedule = dataclasses.asdict(self.schedule)
        return dataclasses.replace(plan, recipe=Recipe.DEFAULT, **schedule)


@dataclass(frozen=True, kw_only=True)
class ShortenedPlan(TrainPlan):
    """A plan that ends early: the learning rates of the whole plan, as far as it goes.

    Attributes:
        run_epochs: how many epochs are run.
    """

    run_epochs: int

    @property
    def total_epochs(self) -> int:
        """Epochs that are run."""
        return self.run_epochs


def shorten_plan(plan: TrainPlan, run_epochs: int) -> TrainPlan:
    """Return `plan`, ending after `run_epochs` epochs."""
    if not 1 <= run_epochs <= plan.total_epochs:
        raise InvalidError(f"a plan of {plan.total_epochs} epochs cannot end after {run_epochs}")
    fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    return ShortenedPlan(**fields, run_epochs=run_epochs)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and with what the in-process runs compute; decides speed, not results.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        weights_dir: folder with `NAME.safetensors`; None asks the hub.
        work_dir: for decoded images, checkpoints and what was chosen.
        keep_images: whether decoded images stay for later runs.
        checkpoint_every_s: least time between two checkpoints.
    """

    device: str = "auto"
    weights_dir: Path | None = None
    work_dir: Path
    keep_images: bool = True
    checkpoint_every_s: float = 60.0
