"""The Celery tasks: what a ring of the doorbell makes a worker do. They carry no data."""

from celery import shared_task

from core.platform.doorbell import DELIVER_TASK, PREDICT_TASK, TRAIN_TASK, VALIDATE_TASK
from worker.deliver import deliver_due
from worker.predicting import predict_next
from worker.runtime import get_runtime
from worker.slots import hold_slot
from worker.sweeper import sweep
from worker.training import train_next
from worker.validation import validate_next

SWEEP_TASK = "maintenance.sweep"


@shared_task(name=TRAIN_TASK)
def train() -> None:
    """Train queued jobs, one after the other, until none waits or the worker shuts down."""
    runtime = get_runtime()
    with hold_slot(runtime.folder, "train", runtime.settings.worker_slots) as slot:
        if slot is None:
            return
        while not runtime.is_draining and train_next(runtime, slot):
            runtime.doorbell.ring(DELIVER_TASK)


@shared_task(name=VALIDATE_TASK)
def validate() -> None:
    """Validate pending datasets until none waits or the worker shuts down."""
    runtime = get_runtime()
    with hold_slot(runtime.folder, "validate", 1) as slot:
        if slot is None:
            return
        while not runtime.is_draining and validate_next(runtime):
            runtime.doorbell.ring(DELIVER_TASK)


@shared_task(name=PREDICT_TASK)
def predict() -> None:
    """Make pending batch predictions until none waits or the worker shuts down."""
    runtime = get_runtime()
    with hold_slot(runtime.folder, "predict", 1) as slot:
        if slot is None:
            return
        while not runtime.is_draining and predict_next(runtime):
            runtime.doorbell.ring(DELIVER_TASK)


@shared_task(name=DELIVER_TASK)
def deliver() -> None:
    """Send webhooks that are due, unless this worker is at it already."""
    runtime = get_runtime()
    with hold_slot(runtime.folder, "deliver", 1) as slot:
        if slot is not None and not runtime.is_draining:
            deliver_due(runtime)


@shared_task(name=SWEEP_TASK)
def run_sweep() -> None:
    """Put right what dead workers left behind, unless this worker is at it already."""
    runtime = get_runtime()
    with hold_slot(runtime.folder, "sweep", 1) as slot:
        if slot is not None:
            sweep(runtime)
