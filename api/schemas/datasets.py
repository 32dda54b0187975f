"""Datasets on the wire."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.fields import DisplayName, Seed, to_unix_s
from core.platform.datasets import MAX_TOLERANCE
from core.platform.db.tables import DatasetRow
from core.types import DatasetState, Split


class DatasetFields(BaseModel):
    """The plain fields of the upload form."""

    model_config = ConfigDict(extra="forbid")

    name: DisplayName | None = Field(None, description="Absent: the file's name.")
    seed: Seed = Field(0, description="Of the splits, where the archive has none.")
    tolerance: float = Field(
        0.0,
        ge=0,
        le=MAX_TOLERANCE,
        allow_inf_nan=False,
        description="Share of images that may be undecodable; they are reported and left out.",
    )


class Archive(BaseModel):
    """The uploaded bytes."""

    name: str
    size_bytes: int
    sha256: str


class Dataset(BaseModel):
    """An upload and, once `ready`, the immutable dataset made of it."""

    id: str = Field(examples=["ds_5b3fe0c9f2a14f0d9c1b7a66"])
    object: Literal["dataset"] = "dataset"
    name: str
    status: DatasetState
    seed: int
    tolerance: float
    archive: Archive
    classes: list[str] = Field(description="Sorted; a class's place is its label.")
    splits: dict[str, int] = Field(
        description="Images per split.", examples=[{"train": 800, "val": 200, "test": 797}]
    )
    progress: dict[str, Any] | None = Field(description="While `validating`.")
    summary: dict[str, Any] | None = Field(description="Of the report.")
    error: dict[str, Any] | None = Field(description="When `invalid` or `failed`.")
    created_at: int = Field(description="Unix seconds.")
    finished_at: int | None

    @classmethod
    def from_row(cls, row: DatasetRow) -> Self:
        """Show a row."""
        summary = (row.report or {}).get("summary")
        return cls(
            id=row.id,
            name=row.name,
            status=DatasetState(row.state),
            seed=row.seed,
            tolerance=row.tolerance,
            archive=Archive(
                name=row.archive_name, size_bytes=row.archive_bytes, sha256=row.archive_sha256
            ),
            classes=row.classes,
            splits={split: row.splits[split] for split in Split if split in row.splits},
            progress=row.progress if row.state == DatasetState.VALIDATING else None,
            summary=summary if isinstance(summary, dict) else None,
            error=row.error,
            created_at=int(row.created_at),
            finished_at=to_unix_s(row.finished_at),
        )


class DatasetReport(BaseModel):
    """Everything that validation found."""

    object: Literal["dataset.report"] = "dataset.report"
    dataset_id: str
    status: DatasetState
    report: dict[str, Any]
