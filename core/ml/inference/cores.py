"""How a batch uses the cores of a CPU: in parts, one core each, or as a whole on some of them.

Operators that share one image's work among threads wait for the slowest of them hundreds of times
in a forward. A thread for each part of the batch, with one core for all of its operators, waits
once. On two cores ViT-Ti took 1.3 to 1.4 times as many images a second this way in batches of 4 to
8 in fp32, and 1.2 to 1.4 in bf16; at 32 it was 1.1. Batches that run side by side, each on cores of
its own, do not wait for each other at all: that is how requests are served, see `batcher`.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

#: Runs some images: their slots and they themselves, to features in their order.
Run = Callable[[Sequence[int], Tensor], Tensor]


class Cores:
    """As many threads as there are cores to use, each with one.

    Args:
        count: how many cores.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def run(
        self, run: Run, slots: Sequence[int], images: Tensor, cores: int | None = None
    ) -> Tensor:
        """Return what `run` gives for all images, having called it for them or for parts of them.

        Args:
            run: may be called from several threads at once.
            slots: of every image.
            images: (batch, …).
            cores: run the batch as a whole, in this thread, on so many; None: in parts, on all.
        """
        parts = 1 if cores else min(self._count, len(slots))
        if parts == 1:
            use_cores(cores or self._count)
            return run(slots, images)
        bounds = [len(slots) * part // parts for part in range(parts + 1)]

        def run_part(part: int) -> Tensor:
            chosen = slice(bounds[part], bounds[part + 1])
            with torch.no_grad():
                return run(slots[chosen], images[chosen])

        return torch.cat(list(self._get_pool().map(run_part, range(parts))))

    def _get_pool(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                begun = threading.Barrier(self._count)
                self._pool = ThreadPoolExecutor(
                    self._count, "cores", initializer=use_cores, initargs=(1,)
                )
                # All are begun now, each with a core of its own. What a thread sets is also what
                # threads that begin later start with, so that is put back.
                wanted = torch.get_num_threads()
                list(self._pool.map(lambda _: begun.wait(), range(self._count)))
                torch.set_num_threads(wanted)
            return self._pool


def use_cores(count: int) -> None:
    """Let torch use so many cores in this thread."""
    # Asked first: torch looks up what a thread starts with when that is needed for the first time,
    # which would undo what has been set before.
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
