"""A lock that is handed on in the order in which it was asked for.

A thread that runs one batch after the other would get a plain lock back before any other thread
wakes up, and a model that waits to be admitted would wait for as long as there is traffic.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """First come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_taken = False

    @contextmanager
    def take(self) -> Iterator[None]:
        """Run the body alone. A thread must not take it twice."""
        gate = None
        with self._lock:
            if self._is_taken:
                gate = threading.Lock()
                gate.acquire()  # the one before opens it
                self._waiting.append(gate)
            self._is_taken = True
        if gate is not None:
            gate.acquire()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().release()
                else:
                    self._is_taken = False
