"""What can be trained, on the wire."""

from typing import Any, Literal

from pydantic import BaseModel

from core.catalog.methods import AdapterKind, DistillationLoss, MethodType, Precision, Recipe


class BackboneInfo(BaseModel):
    """A network that can be a student or a teacher."""

    name: str
    family: str
    parameters: int
    depth: int
    image_px: int
    max_hidden_dim: int
    license: str


class PairInfo(BaseModel):
    """A named teacher and student."""

    name: str
    summary: str
    student: str
    teacher: str
    defaults: dict[str, Any]


class Methods(BaseModel):
    """Everything that a job may name, with defaults and limits."""

    object: Literal["fine_tuning.methods"] = "fine_tuning.methods"
    methods: list[MethodType]
    pairs: list[PairInfo]
    backbones: list[BackboneInfo]
    adapter_kinds: list[AdapterKind]
    distillation_losses: list[DistillationLoss]
    precisions: list[Precision]
    recipes: dict[Recipe, dict[str, Any]]
    defaults: dict[str, Any]
    limits: dict[str, Any]
