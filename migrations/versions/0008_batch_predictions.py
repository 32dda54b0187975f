"""Batch predictions, made by workers.

Processes of the release before go on working beside it, and make none. Their sweeps do not know
what its rows name: workers of that release should be gone before an archive or a result is older
than `IDAT_COLLECT_GRACE_S`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "batch_predictions",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=40), server_default="default", nullable=False),
        sa.Column("state", sa.String(length=20), server_default="pending", nullable=False),
        sa.Column("model_reference", sa.String(length=200), nullable=False),
        sa.Column("model_id", sa.String(length=40), nullable=False),
        sa.Column("adapter_sha256", sa.String(length=64), nullable=False),
        sa.Column("config_sha256", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=40), nullable=True),
        sa.Column("split", sa.String(length=10), nullable=True),
        sa.Column("archive_sha256", sa.String(length=64), nullable=False),
        sa.Column("archive_bytes", sa.BigInteger(), nullable=False),
        sa.Column("archive_name", sa.String(length=300), nullable=False),
        sa.Column("manifest_sha256", sa.String(length=64), nullable=True),
        sa.Column("caches", sa.JSON(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("images", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("results_sha256", sa.String(length=64), nullable=True),
        sa.Column("results_bytes", sa.BigInteger(), nullable=True),
        sa.Column("counts", sa.JSON(), nullable=True),
        sa.Column("ran_s", sa.Float(precision=53), server_default=sa.text("0"), nullable=False),
        sa.Column("claimed_at", sa.Float(precision=53), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.Column("started_at", sa.Float(precision=53), nullable=True),
        sa.Column("finished_at", sa.Float(precision=53), nullable=True),
        sa.Column("deleted_at", sa.Float(precision=53), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batch_predictions")),
    )
    for name, columns in (
        ("ix_batch_predictions_state_created_at", ["state", "created_at"]),
        ("ix_batch_predictions_project_created_at", ["project_id", "created_at", "id"]),
        ("ix_batch_predictions_project_claimed_at", ["project_id", "claimed_at"]),
        ("ix_batch_predictions_lease_expires_at", ["lease_expires_at"]),
    ):
        op.create_index(name, "batch_predictions", columns)


def downgrade() -> None:
    op.drop_table("batch_predictions")
