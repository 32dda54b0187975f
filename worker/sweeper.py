"""Puts right what the dead left behind: expired leases, working folders, slots of dead workers."""

import logging
import os
import shutil

from core.platform.datasets import repository as datasets
from core.platform.jobs import repository as jobs
from worker.runtime import Runtime
from worker.workdirs import remove_abandoned

logger = logging.getLogger(__name__)


def sweep(runtime: Runtime) -> None:
    """Run one sweep; any number of workers may, at the same time."""
    limit = runtime.settings.max_attempts
    with runtime.database.write() as session:
        lost = jobs.expire_attempts(session, max_attempts=limit)
        lost += datasets.expire_attempts(session, max_attempts=limit)
    for row_id in lost:
        logger.warning("the lease of %s had run out", row_id)
    for workdir in remove_abandoned(runtime.settings.scratch_dir):
        logger.warning("removed the abandoned folder %s", workdir)
    for folder in runtime.settings.scratch_dir.glob("worker-*"):
        if folder != runtime.folder and not _is_alive(int(folder.name.removeprefix("worker-"))):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
