"""Turns: what one worker does for all of them, once in an interval."""

from sqlalchemy import exists, insert, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.platform.db.clock import db_now
from core.platform.db.tables import TurnRow


def take_turn(session: Session, name: str, *, interval_s: float) -> bool:
    """Return whether it is due and the caller's to do; it is due again after the interval.

    One conditional UPDATE on the database's clock: of two that come at once, the second finds the
    date moved on. Who takes a turn and dies has cost one interval.

    Args:
        session: a write transaction of its own.
        name: of what is to be done.
        interval_s: seconds until it is due again.
    """
    due_at = db_now() + interval_s
    statement = update(TurnRow).where(TurnRow.name == name, TurnRow.due_at <= db_now())
    taken = session.execute(statement.values(due_at=due_at).returning(TurnRow.name)).first()
    return taken is not None or _take_first(session, name, interval_s)


def repeat_turn(session: Session, name: str) -> None:
    """Make it due at once: there is more to do than one turn takes."""
    session.execute(update(TurnRow).where(TurnRow.name == name).values(due_at=db_now()))


def _take_first(session: Session, name: str, interval_s: float) -> bool:
    known = exists().where(TurnRow.name == name)
    first = select(literal(name), db_now() + interval_s).where(~known)
    try:
        with session.begin_nested():
            columns = [TurnRow.name, TurnRow.due_at]
            statement = insert(TurnRow).from_select(columns, first).returning(TurnRow.name)
            return session.execute(statement).first() is not None
    except IntegrityError:
        # Two came first on PostgreSQL; the other one's is committed.
        return False
