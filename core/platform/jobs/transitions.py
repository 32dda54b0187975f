"""How the state of a job changes, by the table in `core.platform.jobs.states`."""

from sqlalchemy.orm import Session

from core.platform import leases
from core.platform.db.tables import JobRow
from core.platform.jobs.states import HELD, TERMINAL, TRANSITIONS
from core.platform.leases import Claim
from core.platform.state_machine import StateMachine
from core.platform.webhooks.outbox import tell_job_end
from core.types import JobState

_MACHINE = StateMachine(
    JobRow,
    JobState,
    TRANSITIONS,
    held=HELD,
    terminal=TERMINAL,
    at_attempts_end={JobRow.claimed_at: None},
    tell_end=tell_job_end,
)

enter = _MACHINE.enter
enter_by_attempt = _MACHINE.enter_by_attempt


def hold(session: Session, claim: Claim) -> JobRow:
    """Lock the claimed job for the rest of the transaction and return it as it is now.

    Raises:
        LeaseLostError: the attempt was overtaken, or the job has ended.
    """
    leases.fenced_update(session, JobRow, claim, states=_MACHINE.held_values, values={})
    return session.get_one(JobRow, claim.row_id, populate_existing=True)
