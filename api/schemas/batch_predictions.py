"""Batch predictions on the wire."""

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.datasets import Archive
from api.schemas.fields import MODEL_REFERENCE_PATTERN, Slug, to_unix_s
from api.schemas.inference import Function, FunctionName, Threshold, TopK
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.predictions.parameters import Parameters
from core.types import BatchPredictionState

SplitName = Literal["train", "val", "test", "all"]
ModelReference = Annotated[
    str,
    Field(
        pattern=MODEL_REFERENCE_PATTERN,
        description="Id, name (its newest), name@alias or name@v3; what it means now, for good.",
        examples=["flowers@production"],
    ),
]


class _Asked(BaseModel):
    model: ModelReference
    top_k: TopK = 5
    function_to_apply: Function = "softmax"
    threshold: Threshold = None

    def to_parameters(self) -> Parameters:
        """Return what rows keep."""
        return Parameters(self.top_k, self.function_to_apply, self.threshold)


class BatchPredictionRequest(_Asked):
    """A model, and a dataset whose images it shall answer for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dataset_id: Slug = Field(examples=["ds_5b3fe0c9f2a14f0d9c1b7a66"])
    split: SplitName = Field("test", description="Which of its images.")


class BatchPredictionForm(_Asked):
    """The plain fields of the form that an archive comes in."""

    model_config = ConfigDict(extra="forbid")


class BatchParameters(BaseModel):
    """How scores are made and how many are told."""

    top_k: int
    function_to_apply: FunctionName
    threshold: float | None


class BatchProgress(BaseModel):
    """How far the attempt is."""

    images: int = Field(description="Answered for.")
    of: int
    eta_s: float | None = Field(description="Seconds left, at the pace so far.")


class BatchCounts(BaseModel):
    """Lines of the results, by kind."""

    predicted: int
    rejected: int = Field(description="Below the threshold.")
    failed: int = Field(description="With an `error`: no image that is read here.")


class BatchResults(BaseModel):
    """The file that `GET …/results` sends."""

    url: str
    sha256: str
    size_bytes: int


class BatchPrediction(BaseModel):
    """A model's answers to all images of an archive or of a dataset."""

    id: str = Field(examples=["bp_8c1f0e7d2b5a4c6f9e3d1a70"])
    object: Literal["batch_prediction"] = "batch_prediction"
    status: BatchPredictionState
    model: str = Field(description="As the request named it.")
    model_id: str = Field(description="What that meant when it was accepted.")
    dataset_id: str | None = Field(description="Null where an archive was sent.")
    split: SplitName | None = Field(description="Likewise.")
    archive: Archive | None = Field(description="Null for a dataset.")
    parameters: BatchParameters
    images: int = Field(description="How many there are to answer for.")
    progress: BatchProgress | None = Field(description="While a worker is at it.")
    counts: BatchCounts | None = Field(description="When `succeeded`.")
    results: BatchResults | None = Field(description="When `succeeded`.")
    attempt: int = Field(description="How many times a worker has begun.")
    error: dict[str, Any] | None = Field(description="When `failed`.")
    created_at: int = Field(description="Unix seconds.")
    started_at: int | None
    finished_at: int | None

    @classmethod
    def from_row(cls, row: BatchPredictionRow) -> Self:
        """Show a row."""
        archive = results = None
        if row.dataset_id is None:
            archive = Archive(
                name=row.archive_name, size_bytes=row.archive_bytes, sha256=row.archive_sha256
            )
        if row.results_sha256 is not None:
            results = BatchResults(
                url=f"/v1/batch_predictions/{row.id}/results",
                sha256=row.results_sha256,
                size_bytes=row.results_bytes or 0,
            )
        is_running = row.state == BatchPredictionState.RUNNING and row.progress is not None
        return cls(
            id=row.id,
            status=BatchPredictionState(row.state),
            model=row.model_reference,
            model_id=row.model_id,
            dataset_id=row.dataset_id,
            split=cast(SplitName | None, row.split),
            archive=archive,
            parameters=BatchParameters.model_validate(row.parameters),
            images=row.images,
            progress=BatchProgress.model_validate(row.progress) if is_running else None,
            counts=None if row.counts is None else BatchCounts.model_validate(row.counts),
            results=results,
            attempt=row.attempt,
            error=row.error,
            created_at=int(row.created_at),
            started_at=to_unix_s(row.started_at),
            finished_at=to_unix_s(row.finished_at),
        )
