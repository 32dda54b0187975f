"""A lock that is handed on in the order in which it was asked for, and that equals may share.

A thread that runs one batch after the other would get a plain lock back before any other thread
wakes up, and a model that waits to be admitted would wait for as long as there is traffic.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Waiter:
    """Somebody whose turn has not come: with whom it can be shared, and what opens when it does."""

    sharing: object
    gate: threading.Event = field(default_factory=threading.Event)


class Turns:
    """First come, first served; whoever comes with what those that run have runs beside them.

    Nobody joins them while somebody else waits, so that no stream of equals keeps that one out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Waiter] = deque()
        self._running = 0
        self._sharing: object = None

    @contextmanager
    def take(self, sharing: object = None) -> Iterator[None]:
        """Run the body when it is its turn. A thread must not take two.

        Args:
            sharing: bodies with the same object may run at the same time; None: alone.
        """
        waiter = None
        with self._lock:
            if self._waiting or not self._fits(sharing):
                waiter = _Waiter(sharing)
                self._waiting.append(waiter)
            else:
                self._begin(sharing)
        if waiter is not None:
            waiter.gate.wait()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                while self._waiting and self._fits(self._waiting[0].sharing):
                    next_one = self._waiting.popleft()
                    self._begin(next_one.sharing)
                    next_one.gate.set()

    def _fits(self, sharing: object) -> bool:
        return not self._running or (sharing is not None and sharing is self._sharing)

    def _begin(self, sharing: object) -> None:
        self._running += 1
        self._sharing = sharing
