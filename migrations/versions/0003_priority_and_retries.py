"""Priorities of jobs, the order of claims by them, and what a job is another try of.

Processes of the release before go on working beside it: they neither read nor write the columns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # One by one, not as a batch: on SQLite, too, each is a change of the schema alone.
    op.add_column("jobs", sa.Column("priority", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("retried_from", sa.String(length=40), nullable=True))
    op.create_index(
        "ix_jobs_queue", "jobs", ["state", sa.text("priority DESC"), "created_at", "id"]
    )


def downgrade() -> None:
    # The release before knows no pauses: what waits for its user would be an error there.
    op.execute("UPDATE jobs SET state = 'running' WHERE state = 'pausing'")
    op.execute(
        "UPDATE jobs SET state = 'queued' WHERE state = 'paused' AND dataset_id IN"
        " (SELECT id FROM datasets WHERE state = 'ready')"
    )
    op.execute("UPDATE jobs SET state = 'validating_files' WHERE state = 'paused'")
    op.drop_index("ix_jobs_queue", "jobs")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("retried_from")
        jobs.drop_column("priority")
