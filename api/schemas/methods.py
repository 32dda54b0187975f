"""What can be trained, on the wire."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from api.schemas.jobs import TrainableByRole
from core.catalog.methods import AdapterKind, DistillationLoss, MethodType, Precision


class BackboneInfo(BaseModel):
    """A network that can be a student or a teacher."""

    name: str
    family: str
    parameters: int
    depth: int
    image_px: int
    mean: tuple[float, float, float] = Field(description="Of its normalisation, of values in 0..1.")
    std: tuple[float, float, float]
    max_hidden_dim: int
    license: str = Field(description="Of the weights, as timm states it.")
    license_note: str | None = Field(description="What restricts their use, if anything does.")
    unsupported_adapters: dict[AdapterKind, str] = Field(
        description="Kinds that cannot be put into it, and why."
    )


class AdapterInfo(BaseModel):
    """A kind of adapter."""

    kind: AdapterKind
    summary: str
    source: str
    hidden_dim_means: str | None = Field(description="Null: the kind has no size.")
    default_hidden_dim: int
    default_scale: float | None = Field(description="Null: the kind has no fixed scale.")
    default_learning_rate: float | None = Field(description="Null: the pair's.")
    default_weight_decay: float | None = Field(description="Null: the pair's.")
    mergeable: bool = Field(description="Whether it can be written into the network's weights.")


class LossInfo(BaseModel):
    """A distillation loss."""

    loss: DistillationLoss
    summary: str
    options: list[str]


class PairInfo(BaseModel):
    """A named teacher and student."""

    name: str
    summary: str
    student: str
    teacher: str
    defaults: dict[str, Any]
    trainable_parameters: dict[AdapterKind, TrainableByRole | None] = Field(
        description="Of every kind with `num_classes` classes, at `hidden_dim` where the kind has "
        "a size and the networks are wide enough; null where the pair cannot have it."
    )


class Methods(BaseModel):
    """Everything that a job may name, with defaults and limits."""

    object: Literal["fine_tuning.methods"] = "fine_tuning.methods"
    methods: list[MethodType]
    pairs: list[PairInfo]
    backbones: list[BackboneInfo]
    adapters: list[AdapterInfo]
    distillation_losses: list[LossInfo]
    precisions: list[Precision]
    recipes: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, Any]]
    defaults: dict[str, Any]
    limits: dict[str, Any]
