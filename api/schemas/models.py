"""Published models on the wire."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from core.platform.db.tables import ModelRow


class AdapterFile(BaseModel):
    """The file that `GET /v1/models/{id}/adapter` sends."""

    sha256: str
    size_bytes: int


class Model(BaseModel):
    """The student's adapter and head, trained and ready to classify."""

    id: str = Field(examples=["mdl_1f9d0a7c63b84e52a0c7d9e4"])
    object: Literal["model"] = "model"
    name: str
    job_id: str
    dataset_id: str
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
            job_id=row.job_id,
            dataset_id=row.dataset_id,
            backbone=row.backbone,
            classes=row.classes,
            metrics=row.metrics,
            adapter=AdapterFile(sha256=row.adapter_sha256, size_bytes=row.adapter_bytes),
            created_at=int(row.created_at),
        )


class ClassScore(BaseModel):
    """A class and its probability."""

    label: str
    score: float = Field(ge=0, le=1)
