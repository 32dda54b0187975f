"""Models that were made elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from core.platform.db.tables import ModelRow
from core.platform.models.liveness import NEVER_S
from core.platform.models.versions import assign_version
from core.types import DEFAULT_PROJECT, new_model_id


@dataclass(frozen=True)
class ImportedModel:
    """A model whose files are checked and stored.

    Attributes:
        name: what its owner calls it.
        backbone: timm name of its network.
        classes: names, in the order of the logits.
        metrics: what its `config.json` says of how well it does.
        adapter_sha256: of `adapter.safetensors`.
        adapter_bytes: size of it.
        config_sha256: of `config.json`.
        card_sha256: of its card.
    """

    name: str
    backbone: str
    classes: tuple[str, ...]
    metrics: Mapping[str, Any]
    adapter_sha256: str
    adapter_bytes: int
    config_sha256: str
    card_sha256: str


def add_imported(
    session: Session, model: ImportedModel, *, project: str = DEFAULT_PROJECT
) -> ModelRow:
    """Publish a model that no job of this service made; return its row.

    Args:
        session: a write transaction, in which `ensure_stored` has been called for its blobs.
        model: what it is.
        project: whose.
    """
    row = ModelRow(
        id=new_model_id(),
        project_id=project,
        name=model.name,
        backbone=model.backbone,
        adapter_sha256=model.adapter_sha256,
        adapter_bytes=model.adapter_bytes,
        config_sha256=model.config_sha256,
        card_sha256=model.card_sha256,
        classes=list(model.classes),
        metrics=dict(model.metrics),
        deleted_at=NEVER_S,
    )
    session.add(row)
    assign_version(session, row)
    session.refresh(row)
    return row
