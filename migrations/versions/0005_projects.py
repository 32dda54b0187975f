"""Projects, their shares and limits; what jobs need and how long they may run.

Processes of the release before go on working beside it: what they create belongs to the project
`default`, and they show everything to everybody, as they did.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_OWNED = ("datasets", "jobs", "models")


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("weight", sa.Float(precision=53), server_default="1", nullable=False),
        sa.Column("max_running_jobs", sa.Integer(), nullable=True),
        sa.Column("pass", sa.Float(precision=53), nullable=True),
        sa.Column("created_at", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
    )
    # For the jobs that there are, and those that the release before goes on to create.
    op.execute("INSERT INTO projects (id, created_at) VALUES ('default', 0)")
    # One by one, not as a batch: on SQLite, too, each is a change of the schema alone.
    for table in _OWNED:
        op.add_column(
            table,
            sa.Column("project_id", sa.String(40), server_default="default", nullable=False),
        )
        op.create_index(f"ix_{table}_project_created_at", table, ["project_id", "created_at", "id"])
    for column in _build_job_columns():
        op.add_column("jobs", column)
    op.create_index(
        "ix_jobs_project_queue",
        "jobs",
        ["project_id", "state", sa.text("priority DESC"), "created_at", "id", "memory_bytes"],
    )


def downgrade() -> None:
    # The release before would take them for keys of everybody.
    op.execute("DELETE FROM idempotency_keys WHERE key LIKE '% %'")
    op.drop_index("ix_jobs_project_queue", "jobs")
    for table in _OWNED:
        op.drop_index(f"ix_{table}_project_created_at", table)
        with op.batch_alter_table(table) as batch:
            if table == "jobs":
                for column in _build_job_columns():
                    batch.drop_column(column.name)
            batch.drop_column("project_id")
    op.drop_table("projects")


def _build_job_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("memory_bytes", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("max_seconds", sa.Float(precision=53), nullable=True),
        sa.Column("ran_s", sa.Float(precision=53), server_default="0", nullable=False),
        sa.Column("claimed_at", sa.Float(precision=53), nullable=True),
        sa.Column("reserved_by", sa.String(length=200), nullable=True),
        sa.Column("reserved_until", sa.Float(precision=53), nullable=True),
    )
