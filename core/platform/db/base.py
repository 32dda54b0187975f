"""What every table shares: naming of constraints, and the columns of a lease."""

from sqlalchemy import JSON, Float, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: JSON that compares and serialises the same on both databases.
JsonObject = dict[str, object]


class Base(DeclarativeBase):
    """Declarative base; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads this class attribute
        JsonObject: JSON,
        list[str]: JSON,
        float: Float(53),
    }


class Leased:
    """Columns of a row that workers claim (see `core.platform.leases`).

    Attributes:
        attempt: fencing token; every claim adds one, every write of an attempt must carry it.
        failures: attempts that count against the limit; a release on shutdown does not.
        lease_owner: who holds the lease, for people.
        lease_expires_at: on the database's clock, unix seconds; null when nobody holds it.
    """

    attempt: Mapped[int] = mapped_column(Integer, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    lease_owner: Mapped[str | None] = mapped_column(String(200), default=None)
    lease_expires_at: Mapped[float | None] = mapped_column(Float(53), default=None, index=True)
