"""Published models on the wire."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from core.catalog.figures import FigureName, FigureStatus
from core.platform.db.tables import ModelRow
from core.platform.models.figures import StoredFigure


class AdapterFile(BaseModel):
    """The file that `GET /v1/models/{id}/adapter` sends."""

    sha256: str
    size_bytes: int


class Model(BaseModel):
    """The student's adapter and head, trained and ready to classify."""

    id: str = Field(examples=["mdl_1f9d0a7c63b84e52a0c7d9e4"])
    object: Literal["model"] = "model"
    name: str
    version: int | None = Field(
        description="Counts the models of this name, from 1; `name@v3` is the third. Null for a "
        "moment where an older process of the service published it."
    )
    source: Literal["job", "import"] = Field(description="Where it comes from.")
    job_id: str | None = Field(description="Null for an imported model.")
    dataset_id: str | None = Field(description="Likewise.")
    backbone: str = Field(description="timm name of the frozen network that it belongs to.")
    classes: list[str] = Field(description="In the order of the logits.")
    metrics: dict[str, Any]
    adapter: AdapterFile
    created_at: int = Field(description="Unix seconds.")

    @classmethod
    def from_row(cls, row: ModelRow) -> Self:
        """Show a row."""
        return cls(
            id=row.id,
            name=row.name,
            version=row.version,
            source="import" if row.job_id is None else "job",
            job_id=row.job_id,
            dataset_id=row.dataset_id,
            backbone=row.backbone,
            classes=row.classes,
            metrics=row.metrics,
            adapter=AdapterFile(sha256=row.adapter_sha256, size_bytes=row.adapter_bytes),
            created_at=int(row.created_at),
        )


class FigureLinks(BaseModel):
    """Where a figure's forms are."""

    json_: str = Field(alias="json")
    png: str | None = Field(description="Null where there is no picture.")


class Figure(BaseModel):
    """A figure that the job asked for."""

    object: Literal["model.figure"] = "model.figure"
    name: FigureName
    status: FigureStatus
    reason: str | None = Field(description="Why there is no picture; null where there is one.")
    links: FigureLinks

    @classmethod
    def from_stored(cls, stored: StoredFigure, *, url: str) -> Self:
        """Show a figure that is served at `url`."""
        return cls(
            name=stored.name,
            status=stored.status,
            reason=stored.reason,
            links=FigureLinks(json=f"{url}.json", png=f"{url}.png" if stored.png_sha256 else None),
        )


class FigureList(BaseModel):
    """The figures of a model, all of them."""

    object: Literal["list"] = "list"
    data: list[Figure]
    has_more: Literal[False] = False
