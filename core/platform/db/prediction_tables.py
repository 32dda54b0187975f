"""The table of batch predictions: a model's answers to all images of an archive or a dataset."""

from sqlalchemy import JSON, BigInteger, Float, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from core.platform.db.base import Base, JsonObject, Leased
from core.platform.db.clock import db_now

_ID = String(40)
_SHA256 = String(64)


class BatchPredictionRow(Leased, Base):
    """A user's request to let a model answer for many images, and all that is known of it.

    It names the blobs that it reads itself, and refers to no other row: model and dataset may be
    deleted while it waits, and its answer is the same.
    """

    __tablename__ = "batch_predictions"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(_ID, default="default", server_default="default")
    state: Mapped[str] = mapped_column(String(20), default="pending", server_default="pending")
    #: what the request called the model
    model_reference: Mapped[str] = mapped_column(String(200))
    #: what that meant when it was accepted
    model_id: Mapped[str] = mapped_column(_ID)
    adapter_sha256: Mapped[str] = mapped_column(_SHA256)
    config_sha256: Mapped[str] = mapped_column(_SHA256)
    #: null where an archive was sent
    dataset_id: Mapped[str | None] = mapped_column(_ID, default=None)
    #: `train`, `val`, `test` or `all` of a dataset; null for an archive
    split: Mapped[str | None] = mapped_column(String(10), default=None)
    archive_sha256: Mapped[str] = mapped_column(_SHA256)
    archive_bytes: Mapped[int] = mapped_column(BigInteger)
    archive_name: Mapped[str] = mapped_column(String(300), default="")
    #: null for an archive
    manifest_sha256: Mapped[str | None] = mapped_column(_SHA256, default=None)
    #: side length in pixels, as text -> SHA-256 of that image cache of the dataset
    caches: Mapped[JsonObject] = mapped_column(default=dict)
    #: `core.platform.predictions.parameters.Parameters`
    parameters: Mapped[JsonObject]
    #: how many there are to answer for
    images: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    progress: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    error: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    #: the one pointer that publishes the answers, set with `succeeded`
    results_sha256: Mapped[str | None] = mapped_column(_SHA256, default=None)
    results_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)
    #: lines by kind: predicted, rejected, failed
    counts: Mapped[JsonObject | None] = mapped_column(JSON, default=None)
    #: running time of the attempts that have ended, seconds
    ran_s: Mapped[float] = mapped_column(Float(53), default=0.0, server_default=text("0"))
    #: when its last attempt was claimed; null before the first
    claimed_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())
    started_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    finished_at: Mapped[float | None] = mapped_column(Float(53), default=None)
    #: set when its user has deleted it; a sweep removes the row a little later
    deleted_at: Mapped[float | None] = mapped_column(Float(53), default=None)

    __table_args__ = (
        Index("ix_batch_predictions_state_created_at", "state", "created_at"),
        Index("ix_batch_predictions_project_created_at", "project_id", "created_at", "id"),
        # Whose turn it is: `core.platform.predictions.attempts`.
        Index("ix_batch_predictions_project_claimed_at", "project_id", "claimed_at"),
    )
