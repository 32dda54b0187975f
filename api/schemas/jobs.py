"""Fine-tuning jobs on the wire. What the absent and `auto` fields mean: `api.job_requests`."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from api.schemas.estimates import Estimate
from api.schemas.fields import (
    AUTO,
    METADATA_KEY_PATTERN,
    METADATA_VALUE_PATTERN,
    NAME_ALONE,
    AutoFloat,
    AutoInt,
    ItemName,
    PriorityNumber,
    RateOrAuto,
    Seed,
    Slug,
    to_unix_s,
)
from core.catalog.methods import (
    AdapterKind,
    DistillationLoss,
    FeatureTokens,
    KlDirection,
    MethodType,
    Precision,
    Recipe,
)
from core.catalog.recipes import DATASET_RECIPES
from core.platform.db.tables import JobEpochRow, JobEventRow, JobRow
from core.types import JobState

_MAX_METADATA = 16


def _few(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > _MAX_METADATA:
        raise ValueError(f"at most {_MAX_METADATA} pairs")
    return metadata


_MetadataKey = Annotated[str, StringConstraints(pattern=METADATA_KEY_PATTERN)]
_MetadataValue = Annotated[str, StringConstraints(max_length=512, pattern=METADATA_VALUE_PATTERN)]
Metadata = Annotated[dict[_MetadataKey, _MetadataValue], AfterValidator(_few)]

_Number = Field(strict=True, allow_inf_nan=False)


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AdapterRequest(_Request):
    """The adapter of both models."""

    kind: Annotated[AdapterKind | None, *AUTO] = Field(None, description="What is trained.")
    hidden_dim: AutoInt = Field(
        None,
        ge=1,
        le=4096,
        description="Bottleneck width, rank or number of prompt tokens, as the kind defines it.",
    )
    scale: AutoFloat = Field(None, gt=0, le=100, description="Of the kinds that have a fixed one.")


class DistillationRequest(_Request):
    """What ties student and teacher together."""

    loss: DistillationLoss = DistillationLoss.MSE
    weight: Annotated[float, _Number] = Field(1.0, ge=0, le=1e4)
    temperature: Annotated[float, _Number] = Field(5.0, gt=0, le=1e3, description="Of `kl`.")
    squared_temperature: bool = Field(
        default=False,
        description="Of `kl`: multiply by temperature², as textbooks do and the paper not.",
    )
    direction: str = Field(
        KlDirection.TEACHER_STUDENT.value,
        description="Of `kl`: KL(teacher ‖ student), or the other way round.",
        json_schema_extra={"enum": [direction.value for direction in KlDirection]},
    )
    detach_teacher: bool = Field(
        default=False,
        description="The teacher learns nothing from this loss; in the paper it does.",
    )
    layers: list[Annotated[int, Field(strict=True, ge=0)]] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Of `feature`: the student's blocks to compare, from 0. Absent: the last.",
    )
    tokens: FeatureTokens = Field(
        FeatureTokens.CLS, description="Of `feature`: the class token (or the mean), or every one."
    )


class MethodRequest(_Request):
    """The method and its networks: a named pair, or timm names one by one."""

    type: MethodType = MethodType.IDAT
    pair: str | None = Field(None, description="A name from GET /v1/fine_tuning/methods.")
    student: str | None = Field(None, description="timm name, instead of `pair`.")
    teacher: str | None = Field(None, description="timm name; only with `student`.")
    adapter: AdapterRequest = Field(default_factory=AdapterRequest)
    teacher_adapter: AdapterRequest | None = Field(
        None, description="Of the teacher, only for `idat`. Absent: the same as the student's."
    )
    distillation: DistillationRequest | None = Field(None, description="Only for `idat`.")


class HyperparametersRequest(_Request):
    """The schedule.

    `auto`, or leaving a field out, takes the default of the pair and the adapter's kind. For the
    learning rate they differ: `auto` searches for one on the validation split.
    """

    epochs: AutoInt = Field(None, ge=1, le=1000)
    batch_size: AutoInt = Field(None, ge=1, le=1024)
    learning_rate: RateOrAuto = Field(
        None,
        description="`auto`: a short search on validation, and a retry with a lower rate should "
        "the run diverge or collapse.",
    )
    weight_decay: AutoFloat = Field(None, ge=0, le=1)
    drop_path: AutoFloat = Field(None, ge=0, le=0.9)
    warmup_epochs: AutoInt = Field(None, ge=0, le=1000)
    precision: Annotated[Precision | None, *AUTO] = Field(
        None, description="`auto`: bf16 where the hardware has it."
    )
    augmentation: Literal["none"] = "none"


class FigureRequest(_Request):
    """A figure to draw after training; its name alone will do."""

    name: str = Field(description="A name from GET /v1/fine_tuning/methods.")
    item: ItemName | None = Field(
        None,
        description="Of `attention_map`: name of the image in the dataset. Absent: the first "
        "image of the test split, else of validation.",
    )


class LimitsRequest(_Request):
    """What a job may use."""

    max_seconds: Annotated[float, _Number] | None = Field(
        None,
        gt=0,
        le=1e8,
        description="Longest running time, all attempts together; the server may have a lower one.",
    )


class JobRequest(_Request):
    """A fine-tuning job to run."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "dataset_id": "ds_5b3fe0c9f2a14f0d9c1b7a66",
                    "name": "flowers",
                    "method": {"type": "idat", "pair": "starter"},
                    "hyperparameters": {"epochs": 20},
                }
            ]
        },
    )

    dataset_id: Slug
    name: Slug | None = Field(None, description="Also the model's; absent: the dataset's.")
    seed: Seed = 0
    metadata: Metadata = Field(default_factory=dict, description="Up to 16 strings, kept as given.")
    priority: PriorityNumber = Field(0, description="Higher starts first, equal ones by age.")
    method: MethodRequest
    recipe: str = Field(
        Recipe.DEFAULT.value,
        description="A named schedule; `vtab-…` are the paper's settings for its 19 datasets.",
        json_schema_extra={"enum": [*Recipe, *DATASET_RECIPES]},
    )
    hyperparameters: HyperparametersRequest = Field(default_factory=HyperparametersRequest)
    compare_baseline: bool = Field(
        default=False,
        description="Train the student alone too, on the same batches, and report the gain.",
    )
    seeds: int = Field(
        1, strict=True, ge=1, le=10, description="Repeat with so many seeds; the first is exported."
    )
    limits: LimitsRequest = Field(default_factory=LimitsRequest)
    figures: list[Annotated[FigureRequest, *NAME_ALONE]] = Field(
        default_factory=list,
        max_length=100,
        description="Drawn after training and served under /v1/models/{model}/figures.",
    )


class JobProgress(BaseModel):
    """How far a job is."""

    phase: str | None = None
    epoch: int | None = Field(None, description="The one being worked on, from 1.")
    total_epochs: int | None = None
    percent: float | None = None
    eta_s: float | None = Field(None, description="Seconds to go, as the trainer sees it.")
    estimated_finish: int | None = Field(None, description="Unix seconds.")
    queue_position: int | None = Field(None, description="Queued jobs ahead of this one.")
    estimated_start: int | None = Field(
        None,
        description="Of a queued job, unix seconds: told from the time that running jobs have left "
        "and that recent ones took. Null while nothing is known to tell it from.",
    )
    details: dict[str, Any] = Field(default_factory=dict, description="Step, losses, accuracies.")

    @classmethod
    def from_report(cls, report: Mapping[str, Any]) -> Self:
        """Read what the trainer said last; what has no field of its own goes to `details`."""
        known = ("phase", "epoch", "total_epochs", "percent", "eta_s")
        details = {name: value for name, value in report.items() if name not in known}
        values = {name: report.get(name) for name in known}
        step, total_steps = report.get("step"), report.get("total_steps")
        if values["percent"] is None and step is not None and total_steps:
            values["percent"] = round(100 * step / total_steps, 1)
        return cls(**values, details=details)


class TrainableParameters(BaseModel):
    """Numbers that training changes in one model."""

    adapter: int
    head: int
    total: int


class TrainableByRole(BaseModel):
    """Trainable numbers of each model; the teacher's only for `idat`."""

    student: TrainableParameters
    teacher: TrainableParameters | None
    distillation: int = Field(0, description="Bridges of the `feature` loss, not exported.")
    total: int


class Job(BaseModel):
    """A fine-tuning job."""

    id: str = Field(examples=["ftjob_8d2c6a1e0b7f4a39a5d0c2e1"])
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    name: str
    status: JobState
    dataset_id: str
    model_id: str | None = Field(description="Once `succeeded`.")
    spec: dict[str, Any] = Field(description="The request with every default filled in.")
    metadata: dict[str, str]
    priority: int
    retried_from: str | None = Field(description="The failed job that this one repeats.")
    progress: JobProgress
    trainable_parameters: TrainableByRole | None = Field(description="Once the classes are known.")
    attempt: int = Field(description="Tries so far; a lost worker costs one.")
    memory_bytes: int = Field(description="Estimated need of a device; 0 if nothing is known.")
    max_seconds: float | None = Field(description="As asked for in `limits`.")
    error: dict[str, Any] | None
    created_at: int = Field(description="Unix seconds.")
    started_at: int | None
    finished_at: int | None

    @classmethod
    def from_row(
        cls, row: JobRow, *, progress: JobProgress, trainable: TrainableByRole | None
    ) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            name=row.name,
            status=JobState(row.state),
            dataset_id=row.dataset_id,
            model_id=row.model_id,
            spec=row.spec,
            metadata=row.labels,
            priority=row.priority,
            retried_from=row.retried_from,
            progress=progress,
            trainable_parameters=trainable,
            attempt=row.attempt,
            memory_bytes=row.memory_bytes,
            max_seconds=row.max_seconds,
            error=row.error,
            created_at=int(row.created_at),
            started_at=to_unix_s(row.started_at),
            finished_at=to_unix_s(row.finished_at),
        )


class JobEstimate(BaseModel):
    """What a job would be; nothing has been created."""

    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    name: str
    dataset_id: str
    dataset_status: str
    spec: dict[str, Any]
    trainable_parameters: TrainableByRole | None = Field(
        description="Null until the dataset is ready: the head's size depends on its classes."
    )
    frozen_parameters: dict[str, int]
    steps: int | None = Field(
        description="Optimizer steps of all runs; null until the dataset is ready."
    )
    estimate: Estimate
    licenses: dict[str, str] = Field(description="Of the backbones' weights, by name.")
    license_notes: list[str] = Field(description="What restricts their use, where something does.")


class JobEvent(BaseModel):
    """One line of a job's log."""

    id: str = Field(examples=["evt_42"])
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    type: str
    message: str
    attempt: int
    data: dict[str, Any]

    @classmethod
    def from_row(cls, row: JobEventRow) -> Self:
        """Show a row."""
        return cls(
            id=f"evt_{row.id}",
            created_at=int(row.created_at),
            level=row.level,
            type=row.type,
            message=row.message,
            attempt=row.attempt,
            data=row.data,
        )


class EpochMetrics(BaseModel):
    """What one epoch measured; accuracies are on the validation split."""

    object: Literal["fine_tuning.job.epoch"] = "fine_tuning.job.epoch"
    epoch: int = Field(description="From 1.")
    created_at: int
    metrics: dict[str, Any]

    @classmethod
    def from_row(cls, row: JobEpochRow) -> Self:
        """Show a row."""
        return cls(epoch=row.epoch, created_at=int(row.created_at), metrics=row.metrics)
