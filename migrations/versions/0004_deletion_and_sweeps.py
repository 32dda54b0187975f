"""Deleted datasets and models, the log of sweeps, and whose turn it is.

Processes of the release before go on working beside it. They show what has been deleted until it is
collected.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("datasets", sa.Column("deleted_at", sa.Float(precision=53), nullable=True))
    op.add_column("models", sa.Column("deleted_at", sa.Float(precision=53), nullable=True))
    op.create_table(
        "sweeps",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.Column("faults", sa.JSON(), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=False),
        sa.Column("finished_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_sweeps")),
    )
    op.create_index(op.f("ix_sweeps_finished_at"), "sweeps", ["finished_at"])
    op.create_table(
        "turns",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("due_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_turns")),
    )


def downgrade() -> None:
    op.drop_table("turns")
    op.drop_table("sweeps")
    # What was deleted, and may have lost its files, must not come back. A dataset that others point
    # at cannot go; the release before shows it as what it is to it: not usable.
    op.execute("DELETE FROM models WHERE deleted_at IS NOT NULL")
    op.execute("UPDATE datasets SET state = 'failed' WHERE deleted_at IS NOT NULL")
    with op.batch_alter_table("models") as models:
        models.drop_column("deleted_at")
    with op.batch_alter_table("datasets") as datasets:
        datasets.drop_column("deleted_at")
