"""The claim of a job as a worker makes it: with the room that its running jobs leave."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from core.platform.db.tables import JobRow
from core.platform.jobs.claiming import Room, claim_job
from core.platform.leases import Claim
from worker.memory import SharedMemory, find_total_bytes
from worker.runtime import Runtime


@contextmanager
def claim_next_job(runtime: Runtime, slot: int) -> Iterator[Claim | None]:
    """Claim the queued job that is next, and hold what it needs for the length of the block.

    Args:
        runtime: this process's runtime.
        slot: the slot that the job will run on, which this process holds.

    Yields:
        The claim, or None when no job waits that may start here now.
    """
    total_bytes = find_total_bytes(runtime.settings)
    if total_bytes is None:
        yield _claim(runtime, None)[0]
        return
    memory = SharedMemory(runtime.folder, total_bytes)
    with ExitStack() as held:
        with memory.hold_claims():
            room = Room(
                worker=runtime.folder.name,
                free_bytes=memory.find_free_bytes(),
                reserve_after_s=runtime.settings.reserve_after_s,
            )
            claim, need_bytes = _claim(runtime, room)
            if claim is not None:
                held.callback(os.close, memory.take(slot, need_bytes))
        yield claim


def _claim(runtime: Runtime, room: Room | None) -> tuple[Claim | None, int]:
    settings = runtime.settings
    with runtime.database.write() as session:
        claim = claim_job(
            session,
            owner=runtime.owner,
            ttl_s=settings.lease_ttl_s,
            max_running_jobs=settings.max_running_jobs,
            room=room,
        )
        if claim is None:
            return None, 0
        return claim, session.get_one(JobRow, claim.row_id).memory_bytes
