"""How the state of a batch prediction changes, by the table in `states`."""

from core.platform.db.prediction_tables import BatchPredictionRow
from core.platform.predictions.states import HELD, TERMINAL, TRANSITIONS
from core.platform.state_machine import StateMachine
from core.platform.webhooks.outbox import tell_prediction_end
from core.types import BatchPredictionState

_MACHINE = StateMachine(
    BatchPredictionRow,
    BatchPredictionState,
    TRANSITIONS,
    held=HELD,
    terminal=TERMINAL,
    at_attempts_end={},  # the last claim stays: projects take turns by it
    tell_end=tell_prediction_end,
)

HELD_VALUES = _MACHINE.held_values

enter = _MACHINE.enter
enter_by_attempt = _MACHINE.enter_by_attempt
