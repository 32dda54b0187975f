"""The course of any attempt: a folder, a child in it, its supervisor, a conclusion in any case."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from core.errors import AppError
from core.platform.leases import Claim
from worker.ending import EndedEarlyError, Limits, Outcome
from worker.faults import describe_fault
from worker.runtime import Runtime
from worker.supervisor import Renew, Supervisor, Write
from worker.workdirs import hold_workdir

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """What one kind of attempt does on its course.

    Attributes:
        renew: renews the lease; gives the row's state.
        on_message: what a message of the child makes the next renewal write.
        build_request: what the child is told; takes the folder for the files that it reads.
        conclude: writes how the attempt ended; takes the supervisor and the working folder.
        break_off: writes that it broke, by a fault of ours.
        find_failure: why the child is to be stopped, None if it is not.
        leave_behind: called when slow work is left to itself, before the conclusion.
    """

    renew: Renew
    on_message: Callable[[dict[str, Any]], list[Write]]
    build_request: Callable[[Path], dict[str, Any]]
    conclude: Callable[[Outcome, Supervisor, Path], None]
    break_off: Callable[[Supervisor, dict[str, Any]], None]
    find_failure: Callable[[], dict[str, Any] | None] = lambda: None
    leave_behind: Callable[[], None] = lambda: None


def see_through(
    module: str, runtime: Runtime, claim: Claim, steps: Steps, *, claimed_s: float
) -> None:
    """Work on the claimed row until it ends, is handed back or is lost.

    Args:
        module: the child.
        runtime: this process's runtime.
        claim: the attempt.
        steps: what this kind of attempt does.
        claimed_s: from when the lease counts, on the monotonic clock.

    Raises:
        LeaseLostError: another attempt, or the end of the row, has overtaken this one.
    """
    settings = runtime.settings
    with hold_workdir(settings.scratch_dir, claim.row_id, claim.attempt) as workdir:
        supervisor = Supervisor(
            module,
            workdir,
            database=runtime.database,
            renew=steps.renew,
            renewed_s=claimed_s,
            limits=Limits.from_settings(settings),
            is_draining=lambda: runtime.is_draining,
            on_message=steps.on_message,
            find_failure=steps.find_failure,
        )
        try:
            try:
                outcome = supervisor.run(
                    supervisor.renew_while(lambda: steps.build_request(workdir / "inputs"))
                )
                steps.conclude(outcome, supervisor, workdir)
            except EndedEarlyError as early:
                steps.leave_behind()
                steps.conclude(early.outcome, supervisor, workdir)
        except (AppError, OSError, ValueError, KeyError, DBAPIError) as error:
            # A fault of ours, here in the supervisor: it costs the attempt, not the worker.
            logger.exception("attempt %d of %s broke", claim.attempt, claim.row_id)
            steps.break_off(supervisor, describe_fault(error))
