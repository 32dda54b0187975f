"""What the sweeps of the workers did, on the wire."""

from typing import Literal, Self

from pydantic import BaseModel, Field

from core.platform.db.tables import SweepRow


class Sweep(BaseModel):
    """A sweep that changed something, met a fault or looked through the store."""

    id: str = Field(examples=["swp_42"])
    object: Literal["maintenance.sweep"] = "maintenance.sweep"
    worker: str = Field(description="Host and process id.")
    counts: dict[str, int] = Field(
        description="What was done, and how often; what did not happen is left out. `blobs_seen` "
        "and `bytes_seen` are the size of the store, `blobs` and `bytes` what was freed.",
        examples=[{"expired_leases": 1, "blobs": 3, "bytes": 1048576}],
    )
    faults: dict[str, str] = Field(description="Part that failed, and why; the next sweep tries.")
    started_at: int = Field(description="Unix seconds.")
    finished_at: int = Field(description="Unix seconds.")

    @classmethod
    def from_row(cls, row: SweepRow) -> Self:
        """Show a row."""
        return cls.model_validate(
            {
                "id": f"swp_{row.id}",
                "worker": row.owner,
                "counts": row.counts,
                "faults": row.faults,
                "started_at": int(row.started_at),
                "finished_at": int(row.finished_at),
            }
        )
