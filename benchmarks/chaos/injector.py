"""Strikes with the faults that are drawn, up to a few at once, until enough have struck."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.chaos.faults import FAULTS, OF_SURROUNDINGS
from benchmarks.chaos.schedule import Draw
from benchmarks.chaos.targets import NotStruckError, Targets
from core.clock import monotonic_s

_AT_ONCE = 2
#: A process that starts just after such a fault may still meet it.
_AFTERMATH_S = 5.0
#: So many faults may strike in a row without a job's end; then one is waited for.
_PATIENCE = 6
_LONGEST_WAIT_S = 60.0
_TICK_S = 0.25


@dataclass
class Injector:
    """Counts what it has done.

    Attributes:
        targets: what can be struck.
        tell: is given a line for each fault.
        struck: kind -> how often.
        missed: kind -> how often there was nothing to strike.
    """

    targets: Targets
    tell: Callable[[str], None]
    struck: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    _surroundings: int = 0
    _last_surroundings_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        draws: Iterable[Draw],
        *,
        faults: int,
        deadline_s: float,
        count_ended: Callable[[], int],
        over: threading.Event,
    ) -> None:
        """Strike until so many faults have struck, the time is up or the run is over.

        On a busy machine faults would outrun the work, and strike the same few jobs for ever: after
        some faults during which no job has ended, the next one waits for an end.

        Args:
            draws: the faults in their order.
            faults: how many.
            deadline_s: monotonic time.
            count_ended: returns how many jobs have ended.
            over: when set, nothing more is begun.
        """
        pace = _Pace(count_ended)
        room = threading.Semaphore(_AT_ONCE)
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fault") as pool:
            pending: list[Future[None]] = []
            for draw in draws:
                if over.wait(draw.gap_s):
                    break
                pace.wait(self.struck.total(), over)
                room.acquire()
                # A fault that is under way may yet miss, and is then made up for.
                under_way = sum(not each.done() for each in pending)
                while self.struck.total() + under_way >= faults and under_way:
                    threading.Event().wait(0.1)
                    under_way = sum(not each.done() for each in pending)
                if self.struck.total() >= faults or monotonic_s() > deadline_s:
                    room.release()
                    break
                future = pool.submit(self._strike, draw)
                future.add_done_callback(lambda _future: room.release())
                pending.append(future)
        for future in pending:
            future.result()  # a fault of the harness itself is not to be hidden

    @property
    def is_disturbing(self) -> bool:
        """Whether something that processes need to start is struck now, or was a moment ago."""
        with self._lock:
            recently = monotonic_s() - self._last_surroundings_s < _AFTERMATH_S
            return self._surroundings > 0 or recently

    def _strike(self, draw: Draw) -> None:
        is_surrounding = draw.kind in OF_SURROUNDINGS
        with self._lock:
            self._surroundings += is_surrounding
        try:
            what = FAULTS[draw.kind](self.targets, draw)
        except (NotStruckError, ProcessLookupError):
            with self._lock:
                self.missed[draw.kind] += 1
            return
        finally:
            with self._lock:
                self._surroundings -= is_surrounding
                if is_surrounding:
                    self._last_surroundings_s = monotonic_s()
        with self._lock:
            self.struck[draw.kind] += 1
            number = self.struck.total()
        self.tell(f"fault {number}: {draw.kind} ({what})")


class _Pace:
    """Keeps faults from outrunning the work."""

    def __init__(self, count_ended: Callable[[], int]) -> None:
        self._count_ended = count_ended
        self._ended = count_ended()
        self._struck = 0

    def wait(self, struck: int, over: threading.Event) -> None:
        """Return at once, or after the end of a job when there was none for too many faults."""
        waited_s = 0.0
        while self._count_ended() == self._ended and struck - self._struck >= _PATIENCE:
            if waited_s >= _LONGEST_WAIT_S or over.wait(_TICK_S):
                break
            waited_s += _TICK_S
        if waited_s or self._count_ended() != self._ended:
            self._ended, self._struck = self._count_ended(), struck
