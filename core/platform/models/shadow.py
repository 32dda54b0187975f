"""What shadow evaluation has counted, summed over all processes by additions in the database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.errors import NotFoundError
from core.platform.db.clock import db_now
from core.platform.db.model_tables import ModelAliasRow, ShadowDisagreementRow, ShadowRow

MOST_DISAGREEMENTS = 100
#: Of a label in the table; longer ones are cut.
_LABEL_CHARACTERS = 300


@dataclass
class Agreement:
    """Counts of one pair of models.

    Attributes:
        images: images that both have answered.
        agreed: images whose likeliest class has the same name in both.
        delta_sum: sum over images of the mean of |p - q| over classes.
        dropped: images that were not compared, because the process was busy.
        failed: images that the shadow model failed on.
        disagreements: (the model's class, the shadow's) -> images.
    """

    images: int = 0
    agreed: int = 0
    delta_sum: float = 0.0
    dropped: int = 0
    failed: int = 0
    disagreements: Mapping[tuple[str, str], int] = field(default_factory=dict)


def add_agreement(session: Session, change_id: int, counted: Agreement) -> None:
    """Add counts to those of the change of an alias that set the two models side by side."""
    row = {
        "change_id": change_id,
        "images": counted.images,
        "agreed": counted.agreed,
        "delta_sum": counted.delta_sum,
        "dropped": counted.dropped,
        "failed": counted.failed,
    }
    _add(session, ShadowRow, [row], ("images", "agreed", "delta_sum", "dropped", "failed"))
    # In one order, or two processes could wait for each other.
    pairs: dict[tuple[str, str], int] = {}
    for (label, shadow_label), images in sorted(counted.disagreements.items()):
        cut = (label[:_LABEL_CHARACTERS], shadow_label[:_LABEL_CHARACTERS])
        pairs[cut] = pairs.get(cut, 0) + images
    rows = [
        {"change_id": change_id, "label": label, "shadow_label": shadow_label, "images": images}
        for (label, shadow_label), images in pairs.items()
    ]
    _add(session, ShadowDisagreementRow, rows, ("images",))


def read_agreement(session: Session, alias: ModelAliasRow) -> Agreement:
    """Return what has been counted for an alias since its last change.

    Raises:
        NotFoundError: no model shadows it.
    """
    if alias.shadow_model_id is None:
        raise NotFoundError(
            f"no model shadows {alias.name}@{alias.alias}; name one as shadow_model_id when the "
            "alias is set",
            code="shadow_not_found",
        )
    row = session.get(ShadowRow, alias.change_id)
    if row is None:
        return Agreement()
    wanted = select(ShadowDisagreementRow).where(ShadowDisagreementRow.change_id == alias.change_id)
    most_first = wanted.order_by(
        ShadowDisagreementRow.images.desc(),
        ShadowDisagreementRow.label,
        ShadowDisagreementRow.shadow_label,
    )
    found = session.scalars(most_first.limit(MOST_DISAGREEMENTS))
    return Agreement(
        images=row.images,
        agreed=row.agreed,
        delta_sum=row.delta_sum,
        dropped=row.dropped,
        failed=row.failed,
        disagreements={(pair.label, pair.shadow_label): pair.images for pair in found},
    )


def _add(
    session: Session,
    table: type[ShadowRow] | type[ShadowDisagreementRow],
    rows: list[dict[str, Any]],
    sums: tuple[str, ...],
) -> None:
    if not rows:
        return
    on_postgresql = session.connection().dialect.name == "postgresql"
    insert = postgresql.insert if on_postgresql else sqlite.insert
    statement = insert(table).values(rows)
    changes: dict[str, Any] = {
        name: getattr(table, name) + getattr(statement.excluded, name) for name in sums
    }
    if table is ShadowRow:
        changes["updated_at"] = db_now()
    keys = [column.name for column in table.__mapper__.primary_key]
    session.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes))
