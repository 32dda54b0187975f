"""The only ways in which the state of a job or of a batch prediction changes, by a table.

The one exception is the claim, which is a single statement of its own, in `core.platform.leases`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, case, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from core.platform import leases
from core.platform.db.clock import db_now
from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.db.tables import JobRow
from core.platform.leases import Claim

Row = TypeVar("Row", JobRow, BatchPredictionRow)
State = TypeVar("State", bound=StrEnum)
Values = dict[InstrumentedAttribute[Any], Any]


class ForbiddenTransitionError(Exception):
    """The table has no such edge: a bug of the caller."""


@dataclass(frozen=True)
class StateMachine(Generic[Row, State]):
    """A table of states, and what goes with their changes.

    Attributes:
        table: whose rows have the states.
        states: the enumeration of them.
        transitions: each state's next ones.
        held: states in which an attempt holds a lease.
        terminal: states that never change.
        at_attempts_end: columns that every end of an attempt sets, besides its time and lease.
        tell_end: writes what is owed to those who wait for the end, by the row's id.
    """

    table: type[Row]
    states: type[State]
    transitions: Mapping[State, frozenset[State]]
    held: frozenset[State]
    terminal: frozenset[State]
    at_attempts_end: Values
    tell_end: Callable[[Session, str], None]

    @property
    def held_values(self) -> tuple[str, ...]:
        """The held states as the column has them, in a fixed order."""
        return tuple(sorted(state.value for state in self.held))

    def enter(self, session: Session, row: Row, target: State) -> None:
        """Move a row that this transaction has locked into another state.

        Raises:
            ForbiddenTransitionError: the table has no such edge.
        """
        origin = self.states(row.state)
        if target not in self.transitions[origin]:
            raise ForbiddenTransitionError(f"{row.id} cannot go from {origin} to {target}")
        row.state = target.value
        if target in self.terminal:
            row.finished_at = session.scalar(select(db_now()))
        if origin in self.held and target not in self.held:
            for column, value in self._end_of_attempt().items():
                setattr(row, column.key, value)
        session.flush()
        if target in self.terminal:
            self.tell_end(session, row.id)

    def enter_by_attempt(
        self, session: Session, claim: Claim, target: State, values: Values | None = None
    ) -> None:
        """Move the claimed row into another state, from wherever the table allows it, fenced.

        Args:
            session: a write transaction.
            claim: the attempt's.
            target: the new state.
            values: further columns to set.

        Raises:
            LeaseLostError: the attempt was overtaken, or the row's state has no such edge.
        """
        origins = tuple(
            state for state in self.held_values if target in self.transitions[self.states(state)]
        )
        changes: Values = {self.table.state: target.value, **(values or {})}
        if target in self.terminal:
            changes[self.table.finished_at] = db_now()
        if target not in self.held:
            changes.update(self._end_of_attempt())
        leases.fenced_update(session, self.table, claim, states=origins, values=changes)
        if target in self.terminal:
            self.tell_end(session, claim.row_id)

    def _end_of_attempt(self) -> Values:
        """Return what every end of an attempt changes: its time counts, its lease is given up."""
        return {
            self.table.ran_s: self.table.ran_s + _time_run(self.table),
            **self.at_attempts_end,
            **leases.surrender(self.table),
        }


def _time_run(table: type[Row]) -> ColumnElement[float]:
    """Return the seconds since the claim; of a lost worker, until its lease ran out at the most."""
    now = db_now()
    ended_at = case((table.lease_expires_at < now, table.lease_expires_at), else_=now)
    # Neither an attempt of the release before, which notes no beginning, nor a clock that is set
    # back while one runs makes the time less.
    return case((ended_at > table.claimed_at, ended_at - table.claimed_at), else_=0.0)
