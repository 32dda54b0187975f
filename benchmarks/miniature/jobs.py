"""One line of the results file before it is known: what is run, with which settings."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from benchmarks.miniature.methods import Method
from benchmarks.miniature.suite import Size
from core.catalog.pairs import STARTER_STUDENT, STARTER_TEACHER

#: Why a row was run. Rates are chosen by `selection` rows, which never see a test image.
SELECTION, MEASUREMENT = "selection", "measurement"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a run, but the task, the method and the seed.

    A field is None where the method does not have it, so that equal runs have equal settings.

    Attributes:
        train: training images.
        val: validation images.
        test: test images; 0 in selection.
        student: timm name of the student.
        epochs: see `core.ml.training.plan.TrainPlan`, also for the following ones.
        batch_size: images per step.
        learning_rate: peak.
        weight_decay: of the matrices.
        hidden_dim: of every adapter.
        scale: of the parallel adapters.
        teacher: timm name of the teacher.
        loss_weight: λ.
        temperature: T, of `kl`.
    """

    train: int
    val: int
    test: int
    student: str = STARTER_STUDENT
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    hidden_dim: int | None = None
    scale: float | None = None
    teacher: str | None = None
    loss_weight: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        purpose: `SELECTION` or `MEASUREMENT`.
        task: name of the task.
        method: name of the method.
        seed: draws the task's images, the initial weights and the order of the images.
        settings: everything else.
    """

    purpose: str
    task: str
    method: str
    seed: int
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """Return the fields that name a row."""
        return dataclasses.asdict(self)

    @property
    def key(self) -> str:
        """Return what two rows of one job have in common."""
        return build_key(self.to_json())


def build_key(row: dict[str, Any]) -> str:
    """Return the key of a row, whatever else is in it."""
    names = [field.name for field in dataclasses.fields(Job)]
    return json.dumps({name: row.get(name) for name in names}, sort_keys=True)


def build_settings(
    method: Method,
    size: Size,
    *,
    learning_rate: float | None = None,
    with_test: bool = True,
    hidden_dim: int = 8,
    loss_weight: float = 1.0,
    temperature: float = 5.0,
    student: str = STARTER_STUDENT,
    teacher: str = STARTER_TEACHER,
) -> Settings:
    """Return a method's settings, with the starter pair's defaults for what is not named."""
    data = Settings(
        train=size.train, val=size.val, test=size.test if with_test else 0, student=student
    )
    if method.placement is None:
        return data
    alone = dataclasses.replace(
        data,
        epochs=size.epochs,
        batch_size=size.batch_size,
        learning_rate=learning_rate,
        weight_decay=5e-5,
        hidden_dim=hidden_dim,
        scale=0.1 if method.placement != "S" else None,
    )
    if method.loss is None:
        return alone
    return dataclasses.replace(
        alone,
        teacher=teacher,
        loss_weight=loss_weight,
        temperature=temperature if method.loss.value == "kl" else None,
    )
