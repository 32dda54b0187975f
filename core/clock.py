"""The two clocks of a process. Leases use neither: they are compared on the database's clock."""

import time


def now_s() -> float:
    """Return wall-clock time in unix seconds, for display and file names only."""
    return time.time()


def monotonic_s() -> float:
    """Return seconds on a clock that never jumps, for deadlines inside one process."""
    return time.monotonic()
