"""The state machine of a batch prediction, as a table."""

from core.types import BatchPredictionState as S

TRANSITIONS: dict[S, frozenset[S]] = {
    # waits for a worker
    S.PENDING: frozenset({S.RUNNING, S.CANCELLED}),
    # back to pending when its attempt is lost or its worker shuts down
    S.RUNNING: frozenset({S.SUCCEEDED, S.FAILED, S.PENDING, S.CANCELLING}),
    # the attempt has still to stop; whatever it ends with, the prediction is cancelled
    S.CANCELLING: frozenset({S.CANCELLED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}

TERMINAL: frozenset[S] = frozenset(state for state, nexts in TRANSITIONS.items() if not nexts)
#: States in which an attempt holds a lease.
HELD: frozenset[S] = frozenset({S.RUNNING, S.CANCELLING})
