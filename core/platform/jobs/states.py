"""The state machine of a job, as a table.

`docs/state_machine.md` draws it; a test keeps the two equal.
"""

from core.types import JobState as S

TRANSITIONS: dict[S, frozenset[S]] = {
    # waits for its dataset
    S.VALIDATING_FILES: frozenset({S.QUEUED, S.FAILED, S.CANCELLED}),
    # waits for a worker
    S.QUEUED: frozenset({S.RUNNING, S.CANCELLED}),
    # back to queued when its attempt is lost or its worker shuts down
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.QUEUED, S.CANCELLING}),
    # the attempt has still to stop; whatever it ends with, the job is cancelled
    S.CANCELLING: frozenset({S.CANCELLED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}

TERMINAL: frozenset[S] = frozenset(state for state, nexts in TRANSITIONS.items() if not nexts)
#: States in which an attempt holds a lease.
HELD: frozenset[S] = frozenset({S.RUNNING, S.CANCELLING})
