"""Tables around published models: names, aliases, and what shadow evaluation has counted."""

from sqlalchemy import BigInteger, Float, Index, Integer, String, text
from sqlalchemy.orm import Mapped, mapped_column

from core.platform.db.base import Base
from core.platform.db.clock import db_now

_ID = String(40)
_PROJECT = String(40)
_NAME = String(200)
_ALIAS = String(64)
_COUNTER = BigInteger().with_variant(Integer, "sqlite")


def _project_key() -> Mapped[str]:
    """Return the project's column of a primary key; the default is the project of old rows."""
    return mapped_column(_PROJECT, primary_key=True, server_default="default")


class ModelNameRow(Base):
    """A name of models and the last version that was given under it, deleted ones included."""

    __tablename__ = "model_names"

    project_id: Mapped[str] = _project_key()
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    last_version: Mapped[int] = mapped_column(Integer)


class ModelAliasRow(Base):
    """What `name@alias` means now. One row: a switch is one UPDATE."""

    __tablename__ = "model_aliases"

    project_id: Mapped[str] = _project_key()
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    alias: Mapped[str] = mapped_column(_ALIAS, primary_key=True)
    #: no reference: a process of the release before deletes models without asking for aliases
    model_id: Mapped[str] = mapped_column(_ID, index=True)
    #: a second model that answers a share of the requests for nobody, to be compared
    shadow_model_id: Mapped[str | None] = mapped_column(_ID, index=True, default=None)
    #: share of the requests, 0 to 1
    shadow_fraction: Mapped[float] = mapped_column(Float(53), default=0.0, server_default=text("0"))
    #: the change that made it so, `AliasChangeRow.id`; also its revision for callers
    change_id: Mapped[int] = mapped_column(_COUNTER)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())


class AliasChangeRow(Base):
    """One change of an alias, append-only."""

    __tablename__ = "alias_changes"

    id: Mapped[int] = mapped_column(_COUNTER, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(_PROJECT, server_default="default")
    name: Mapped[str] = mapped_column(_NAME)
    alias: Mapped[str] = mapped_column(_ALIAS)
    action: Mapped[str] = mapped_column(String(20))
    #: null when the alias was deleted
    model_id: Mapped[str | None] = mapped_column(_ID, default=None)
    shadow_model_id: Mapped[str | None] = mapped_column(_ID, default=None)
    shadow_fraction: Mapped[float] = mapped_column(Float(53), default=0.0, server_default=text("0"))
    #: the change that a rollback of this one goes back to; null where there is none
    previous_id: Mapped[int | None] = mapped_column(_COUNTER, default=None)
    #: who asked for it: the id of a key; null where there are none
    actor: Mapped[str | None] = mapped_column(String(200), default=None)
    created_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())

    __table_args__ = (Index("ix_alias_changes_alias", "project_id", "name", "alias", "id"),)


class ShadowRow(Base):
    """How often a shadow model agreed with its alias's model, summed over all processes."""

    __tablename__ = "shadow_agreements"

    #: the change that set the two models against each other
    change_id: Mapped[int] = mapped_column(_COUNTER, primary_key=True, autoincrement=False)
    images: Mapped[int] = mapped_column(_COUNTER)
    #: images whose likeliest class has the same name in both models
    agreed: Mapped[int] = mapped_column(_COUNTER)
    #: sum over images of the mean of |p - q| over the classes of both models
    delta_sum: Mapped[float] = mapped_column(Float(53))
    #: images that were drawn and not compared, because the process was busy
    dropped: Mapped[int] = mapped_column(_COUNTER)
    #: images that the shadow model failed on
    failed: Mapped[int] = mapped_column(_COUNTER)
    updated_at: Mapped[float] = mapped_column(Float(53), insert_default=db_now())


class ShadowDisagreementRow(Base):
    """How many images one model calls this and the other one that."""

    __tablename__ = "shadow_disagreements"

    change_id: Mapped[int] = mapped_column(_COUNTER, primary_key=True, autoincrement=False)
    label: Mapped[str] = mapped_column(String(300), primary_key=True)
    shadow_label: Mapped[str] = mapped_column(String(300), primary_key=True)
    images: Mapped[int] = mapped_column(_COUNTER)
