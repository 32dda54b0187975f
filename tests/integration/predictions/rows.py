"""Models, datasets and batch predictions in a database and a store, as their routes write them."""

import io
import zipfile
from typing import Any

from sqlalchemy import update

from core.platform.datasets import repository as datasets
from core.platform.db.clock import db_now
from core.platform.db.engine import Database
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import ModelRow
from core.platform.leases import Claim
from core.platform.predictions import attempts, repository
from core.platform.predictions.parameters import Parameters
from core.platform.predictions.repository import Images

TTL_S = 60.0
CRASH = {"code": "process_died", "message": "it crashed", "class": "system"}


def build_archive(files: dict[str, bytes]) -> bytes:
    """A zip of these files, in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def add_model_row(database: Database, *, project: str = "default", **columns: Any) -> ModelRow:
    """A model's row; its files are invented unless they are given."""
    with database.write() as session:
        row = ModelRow(
            **{
                "id": f"mdl_{project}",
                "project_id": project,
                "name": "flowers",
                "backbone": "starter",
                "adapter_sha256": "a" * 64,
                "adapter_bytes": 1,
                "config_sha256": "b" * 64,
                "card_sha256": "c" * 64,
                "classes": ["a", "b"],
                "metrics": {},
                **columns,
            }
        )
        session.add(row)
    return row


def add(
    database: Database,
    model: ModelRow | None = None,
    images: Images | None = None,
    parameters: Parameters | None = None,
    *,
    project: str = "default",
    max_waiting: int = 0,
) -> str:
    """A pending prediction."""
    model = model or ModelRow(id="mdl_1", adapter_sha256="a" * 64, config_sha256="b" * 64)
    with database.write() as session:
        row = repository.create_prediction(
            session,
            model=model,
            reference="flowers@production",
            images=images or Images("d" * 64, 1, "pictures.zip", 3),
            parameters=parameters or Parameters(),
            project=project,
            max_waiting=max_waiting,
        )
    return row.id


def claim(database: Database, owner: str = "host:1") -> Claim:
    """Claim the next."""
    claimed = try_claim(database, owner)
    assert claimed is not None
    return claimed


def try_claim(database: Database, owner: str = "host:1") -> Claim | None:
    """Claim the next, if there is one."""
    with database.write() as session:
        return attempts.claim_prediction(session, owner=owner, ttl_s=TTL_S)


def lose(database: Database, claimed: Claim, *, max_attempts: int = 3) -> None:
    """Let an attempt's lease run out, and sweep."""
    let_lease_run_out(database, claimed.row_id)
    with database.write() as session:
        lost = attempts.expire_attempts(session, max_attempts=max_attempts)
    assert lost == [claimed.row_id]


def let_lease_run_out(database: Database, prediction_id: str) -> None:
    """Move the end of a lease into the past."""
    table = BatchPredictionRow
    with database.write() as session:
        session.execute(
            update(table).where(table.id == prediction_id).values(lease_expires_at=db_now() - 1)
        )


def row_of(database: Database, prediction_id: str) -> BatchPredictionRow:
    """The prediction as it is now, deleted or not."""
    with database.read() as session:
        return session.get_one(BatchPredictionRow, prediction_id)


def columns_of(row: BatchPredictionRow) -> dict[str, Any]:
    """Every column, for comparison."""
    return {column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs}


def publish(database: Database, claimed: Claim, sha256: str = "e" * 64) -> None:
    """End with results."""
    counts = {"predicted": 3, "rejected": 0, "failed": 0}
    with database.write() as session:
        attempts.publish(session, claimed, results_sha256=sha256, results_bytes=9, counts=counts)


def cancel(database: Database, prediction_id: str) -> str:
    """Ask for the end; return the state."""
    with database.write() as session:
        return repository.request_cancel(session, prediction_id).state


def add_ready_dataset(database: Database, **columns: Any) -> str:
    """A dataset that has been validated."""
    with database.write() as session:
        row = datasets.create_dataset(
            session,
            name="pictures",
            seed=0,
            archive_sha256=columns.pop("archive_sha256", "d" * 64),
            archive_bytes=1,
            archive_name="pictures.zip",
        )
        row.state = "ready"
        for name, value in columns.items():
            setattr(row, name, value)
    return row.id
