"""What claims will do with a queue: the rules of `core.platform.jobs.fair_share`, played out.

Everything that a claim looks at is given, so that this is plain arithmetic. Memory is left out:
what a worker has free is known to that worker alone.
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass
class Share:
    """A project's part in the order of claims.

    Attributes:
        weight: its share, relative to other projects'.
        limit: jobs that it may have running; 0 for any number.
        last: virtual time at which its last job was claimed; None before its first.
    """

    weight: float
    limit: int
    last: float | None

    def get_due(self, now: float) -> float:
        """Return the virtual time at which its next job is due; never before `now`."""
        return now if self.last is None else max(now, self.last + 1.0 / self.weight)


@dataclass(frozen=True)
class Busy:
    """A slot of a worker with a job on it.

    Attributes:
        project: the job's.
        free_in_s: in how many seconds it leaves the slot; None when nothing tells.
    """

    project: str
    free_in_s: float | None


@dataclass(frozen=True)
class Start:
    """What becomes of a queued job.

    Attributes:
        job_id: which.
        in_s: in how many seconds it starts; None when nothing tells.
    """

    job_id: str
    in_s: float | None


def play_out(
    queues: Mapping[str, Sequence[str]],
    shares: Mapping[str, Share],
    slots: Sequence[Busy],
    duration_s: float | None,
) -> list[Start]:
    """Return the queued jobs in the order in which they are claimed.

    Each slot takes, as soon as it is free, the job that is next, and keeps it for `duration_s`.
    Slots of which it is not known when they are free come free after the others, in the order in
    which they were taken. A project that may not start anything holds nobody else up; a slot that
    finds nothing to start waits for the next end of a job.

    Args:
        queues: ids of each project's queued jobs, in the project's order.
        shares: of all projects, those without queued jobs included; their `last` moves on.
        slots: those that are busy, longest busy first. Without any there is one, free at a time
            that nothing tells.
        duration_s: how long a job takes, None when that is unknown.
    """
    play = _Play(queues, shares, duration_s)
    for slot in slots:
        play.occupy(slot.project, slot.free_in_s)
    if not slots:
        play.free_slots = 1
        play.start_what_may(None)
    while play.busy and play.is_anybody_waiting:
        play.free_next()
    return play.starts


class _Play:
    """A queue and its slots as they stand at one moment."""

    def __init__(
        self,
        queues: Mapping[str, Sequence[str]],
        shares: Mapping[str, Share],
        duration_s: float | None,
    ) -> None:
        self.starts: list[Start] = []
        self.busy: list[tuple[float, int, str]] = []
        self.free_slots = 0
        self._queues = {name: deque(ids) for name, ids in queues.items() if ids}
        self._shares = shares
        self._duration_s = duration_s
        self._running: Counter[str] = Counter()
        self._now = max((s.last for s in shares.values() if s.last is not None), default=0.0)
        self._taken = 0

    @property
    def is_anybody_waiting(self) -> bool:
        """Whether there is a queued job left."""
        return bool(self._queues)

    def occupy(self, project: str, free_in_s: float | None) -> None:
        """Put a job on a slot."""
        at = math.inf if free_in_s is None else max(0.0, free_in_s)
        heapq.heappush(self.busy, (at, self._taken, project))
        self._taken += 1
        self._running[project] += 1

    def free_next(self) -> None:
        """Go on to the next end of a job."""
        at, _, project = heapq.heappop(self.busy)
        self._running[project] -= 1
        self.free_slots += 1
        self.start_what_may(None if math.isinf(at) else at)

    def start_what_may(self, at_s: float | None) -> None:
        """Let every free slot take the job that is next."""
        while self.free_slots and (name := self._find_next()) is not None:
            share = self._shares[name]
            share.last = self._now = share.get_due(self._now)
            self.starts.append(Start(self._queues[name].popleft(), at_s))
            if not self._queues[name]:
                del self._queues[name]
            self.free_slots -= 1
            if at_s is None or self._duration_s is None:
                self.occupy(name, None)
            else:
                self.occupy(name, at_s + self._duration_s)

    def _find_next(self) -> str | None:
        """Return the project that is next, of those that have something to start and may."""
        able = [
            name
            for name in self._queues
            if not self._shares[name].limit or self._running[name] < self._shares[name].limit
        ]
        return min(able, key=self._rank, default=None)

    def _rank(self, name: str) -> tuple[float, float, str]:
        last = self._shares[name].last
        return self._shares[name].get_due(self._now), -1.0 if last is None else last, name
