"""The state machine of a job, as a table.

`docs/state_machine.md` draws it; a test keeps the two equal. Every change of a job's state goes
through `core.platform.jobs.transitions`, which asks this table.
"""

from core.types import JobState as S

TRANSITIONS: dict[S, frozenset[S]] = {
    # waits for its dataset
    S.VALIDATING_FILES: frozenset({S.QUEUED, S.PAUSED, S.FAILED, S.CANCELLED}),
    # waits for a worker
    S.QUEUED: frozenset({S.RUNNING, S.PAUSED, S.CANCELLED}),
    # back to queued when its attempt is lost or its worker shuts down
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.QUEUED, S.PAUSING, S.CANCELLING}),
    # the attempt has still to stop; if it ends on its own first, that is how the job ends; running
    # again when the pause is taken back
    S.PAUSING: frozenset({S.PAUSED, S.RUNNING, S.SUCCEEDED, S.FAILED, S.CANCELLING}),
    # waits for its user; failed when its dataset turns out to be unusable meanwhile
    S.PAUSED: frozenset({S.QUEUED, S.VALIDATING_FILES, S.FAILED, S.CANCELLED}),
    # the attempt has still to stop; whatever it ends with, the job is cancelled
    S.CANCELLING: frozenset({S.CANCELLED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}

TERMINAL: frozenset[S] = frozenset(state for state, nexts in TRANSITIONS.items() if not nexts)
#: States in which an attempt holds a lease.
HELD: frozenset[S] = frozenset({S.RUNNING, S.PAUSING, S.CANCELLING})
#: States in which nobody works on a job that has not ended.
WAITING: frozenset[S] = frozenset(S) - TERMINAL - HELD
