"""Slow work in a thread of its own, which whoever waits for it can leave behind."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SideWork(Generic[Result]):
    """Something that is done beside the caller.

    No executor: that would wait for its threads at the end of the block and of the process, and a
    store that does not answer can keep one for minutes.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        """Start it."""
        self._work = work
        self._future: Future[Result] = Future()
        threading.Thread(target=self._run, name="side-work", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, at most so long; return whether it has come."""
        return bool(wait([self._future], timeout=timeout_s).done)

    def get_result(self) -> Result:
        """Return what it returned, or raise what it raised."""
        return self._future.result()

    def _run(self) -> None:
        try:
            self._future.set_result(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is wanted
            self._future.set_exception(error)
