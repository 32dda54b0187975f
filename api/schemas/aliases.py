"""Aliases of models on the wire."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.schemas.fields import Slug
from core.platform.db.model_tables import AliasChangeRow, ModelAliasRow
from core.platform.models.alias_rows import Action, Target
from core.platform.models.shadow import Agreement


class AliasTarget(BaseModel):
    """What an alias shall mean; what is left out is none."""

    model_config = ConfigDict(extra="forbid")

    model_id: Slug = Field(description="Id of a model of this name.")
    shadow_model_id: Slug | None = Field(
        None, description="Id of a second model of this name, to compare on the same images."
    )
    shadow_fraction: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="Share of the requests that the second model is given; without one, 0."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.shadow_model_id is None and "shadow_fraction" in self.model_fields_set:
            raise ValueError("shadow_fraction goes with a shadow_model_id")
        return self

    def to_target(self) -> Target:
        """Return it in the platform's words."""
        if self.shadow_model_id is None:
            return Target(self.model_id)
        return Target(self.model_id, self.shadow_model_id, self.shadow_fraction)


class Alias(BaseModel):
    """What `name@alias` means."""

    object: Literal["model.alias"] = "model.alias"
    name: str
    alias: str
    model_id: str
    shadow_model_id: str | None
    shadow_fraction: float
    change_id: int = Field(description="The change that made it so; in quotes, the `ETag`.")
    created_at: int = Field(description="Unix seconds.")

    @classmethod
    def from_row(cls, row: ModelAliasRow) -> Self:
        """Show a row."""
        return cls(
            name=row.name,
            alias=row.alias,
            model_id=row.model_id,
            shadow_model_id=row.shadow_model_id,
            shadow_fraction=row.shadow_fraction,
            change_id=row.change_id,
            created_at=int(row.created_at),
        )


class AliasList(BaseModel):
    """The aliases of a name, all of them."""

    object: Literal["list"] = "list"
    data: list[Alias]
    has_more: Literal[False] = False


class AliasChange(BaseModel):
    """One change of an alias."""

    object: Literal["model.alias.change"] = "model.alias.change"
    id: int
    action: Action
    model_id: str | None = Field(description="Null for a deletion.")
    shadow_model_id: str | None
    shadow_fraction: float
    actor: str | None = Field(
        description="`key_` and a digest of the key that asked for it; null on a server without."
    )
    created_at: int = Field(description="Unix seconds.")

    @classmethod
    def from_row(cls, row: AliasChangeRow) -> Self:
        """Show a row."""
        return cls.model_validate(
            {
                "id": row.id,
                "action": row.action,
                "model_id": row.model_id,
                "shadow_model_id": row.shadow_model_id,
                "shadow_fraction": row.shadow_fraction,
                "actor": row.actor,
                "created_at": int(row.created_at),
            }
        )


class Disagreement(BaseModel):
    """Images that the two models name differently."""

    label: str = Field(description="What the alias's model calls them.")
    shadow_label: str = Field(description="What the other one calls them.")
    images: int


class ShadowReport(BaseModel):
    """How a shadow model compares with its alias's model, since they were set side by side."""

    object: Literal["model.alias.shadow"] = "model.alias.shadow"
    model_id: str
    shadow_model_id: str
    shadow_fraction: float
    images: int = Field(description="Images that both have answered.")
    agreement: float | None = Field(
        description="Share of them whose likeliest class is the same; null before the first."
    )
    mean_abs_delta: float | None = Field(
        description="Mean over images and classes of the difference between the probabilities."
    )
    dropped: int = Field(description="Images that were not compared because the server was busy.")
    failed: int = Field(description="Images that the second model could not answer.")
    disagreements: list[Disagreement] = Field(description="The most frequent 100.")

    @classmethod
    def from_agreement(cls, alias: ModelAliasRow, shadow_id: str, found: Agreement) -> Self:
        """Show what has been counted."""
        return cls(
            model_id=alias.model_id,
            shadow_model_id=shadow_id,
            shadow_fraction=alias.shadow_fraction,
            images=found.images,
            agreement=found.agreed / found.images if found.images else None,
            mean_abs_delta=found.delta_sum / found.images if found.images else None,
            dropped=found.dropped,
            failed=found.failed,
            disagreements=[
                Disagreement(label=label, shadow_label=other, images=images)
                for (label, other), images in found.disagreements.items()
            ],
        )
