"""Aliases of models, and models that no job of this service made.

Processes of the release before go on working beside it. They give their models no version until a
process of this release publishes one of the same name, and do not see imported models: those have
a deletion date that never comes, so that their files are kept all the same.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _project() -> sa.Column[str]:
    return sa.Column("project_id", sa.String(length=40), server_default="default", nullable=False)


def _fraction() -> sa.Column[float]:
    return sa.Column(
        "shadow_fraction", sa.Float(precision=53), server_default=sa.text("0"), nullable=False
    )


def upgrade() -> None:
    with op.batch_alter_table("models") as models:
        models.add_column(sa.Column("version", sa.Integer(), nullable=True))
        models.alter_column("job_id", existing_type=sa.String(length=40), nullable=True)
        models.alter_column("dataset_id", existing_type=sa.String(length=40), nullable=True)
    op.create_table(
        "model_names",
        _project(),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "name", name=op.f("pk_model_names")),
    )
    op.execute(
        "UPDATE models SET version = (SELECT count(*) FROM models AS earlier"
        " WHERE earlier.project_id = models.project_id AND earlier.name = models.name"
        " AND (earlier.created_at < models.created_at"
        " OR earlier.created_at = models.created_at AND earlier.id <= models.id))"
    )
    op.execute(
        "INSERT INTO model_names (project_id, name, last_version)"
        " SELECT project_id, name, count(*) FROM models GROUP BY project_id, name"
    )
    op.create_table(
        "model_aliases",
        _project(),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("shadow_model_id", sa.String(length=40), nullable=True),
        _fraction(),
        sa.Column("change_id", _COUNTER, nullable=False),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "name", "alias", name=op.f("pk_model_aliases")),
    )
    op.create_index(op.f("ix_model_aliases_model_id"), "model_aliases", ["model_id"])
    op.create_index(op.f("ix_model_aliases_shadow_model_id"), "model_aliases", ["shadow_model_id"])
    op.create_table(
        "alias_changes",
        sa.Column("id", _COUNTER, autoincrement=True, nullable=False),
        _project(),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=True),
        sa.Column("shadow_model_id", sa.String(length=40), nullable=True),
        _fraction(),
        sa.Column("previous_id", _COUNTER, nullable=True),
        sa.Column("actor", sa.String(length=200), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_changes")),
    )
    columns = ["project_id", "name", "alias", "id"]
    op.create_index(op.f("ix_alias_changes_alias"), "alias_changes", columns)
    op.create_table(
        "shadow_agreements",
        sa.Column("change_id", _COUNTER, autoincrement=False, nullable=False),
        sa.Column("images", _COUNTER, nullable=False),
        sa.Column("agreed", _COUNTER, nullable=False),
        sa.Column("delta_sum", sa.Float(precision=53), nullable=False),
        sa.Column("dropped", _COUNTER, nullable=False),
        sa.Column("failed", _COUNTER, nullable=False),
        sa.Column("updated_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("change_id", name=op.f("pk_shadow_agreements")),
    )
    op.create_table(
        "shadow_disagreements",
        sa.Column("change_id", _COUNTER, autoincrement=False, nullable=False),
        sa.Column("label", sa.String(length=300), nullable=False),
        sa.Column("shadow_label", sa.String(length=300), nullable=False),
        sa.Column("images", _COUNTER, nullable=False),
        sa.PrimaryKeyConstraint(
            "change_id", "label", "shadow_label", name=op.f("pk_shadow_disagreements")
        ),
    )


def downgrade() -> None:
    for table in ("shadow_disagreements", "shadow_agreements", "alias_changes", "model_aliases"):
        op.drop_table(table)
    op.drop_table("model_names")
    # The release before has no place for a model without a job.
    op.execute("DELETE FROM models WHERE job_id IS NULL OR dataset_id IS NULL")
    with op.batch_alter_table("models") as models:
        models.alter_column("dataset_id", existing_type=sa.String(length=40), nullable=False)
        models.alter_column("job_id", existing_type=sa.String(length=40), nullable=False)
        models.drop_column("version")
