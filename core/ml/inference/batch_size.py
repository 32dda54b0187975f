"""How large a batch may grow: as far as it pays, and no further.

Whoever comes next waits for the batch that runs. On a GPU a larger one costs hardly more time; on a
CPU sixteen images take nearly twice as long as eight, and only the wait grows. No formula tells
which: the time of one image, which all cores share, does not lie on the line of the others. So the
rate of every size is measured, sizes in powers of two, and the smallest is taken whose rate is
nearly the best. As long as that is the largest size known, the next batch has twice as much. Later
one has half of that size now and then, or twice, so that what is nearly the best stays known.
"""

import math

#: Share of the best rate at which a size is large enough: for one project, which waits for nobody
#: but itself, and where several share a network and each waits for the others' batches.
_ENOUGH, _ENOUGH_SHARED = 0.93, 0.7
#: No batch is held smaller than this, however little a larger one would gain.
_LEAST = 2
#: Weight of the newest batch in the rate of its size.
_NEWEST = 0.2
#: Of so many batches one is of half the size, and of so many one of twice the size.
_DOWN, _UP = 8, 32


class BatchSize:
    """The size for one network. One thread asks and adds.

    Args:
        most: images that a batch may have at the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._times_s: dict[int, float] = {}
        self._asked = 0

    def add(self, images: int, took_s: float) -> None:
        """Take a batch of so many images, which took so long, into account."""
        size = 1 << (images.bit_length() - 1)
        newest = took_s / images
        known = self._times_s.get(size)
        self._times_s[size] = newest if known is None else known + _NEWEST * (newest - known)

    def find(self, *, is_shared: bool = False) -> int:
        """Return how many images the next batch may have.

        Args:
            is_shared: whether several projects use the network.
        """
        largest = max(self._times_s, default=0)
        enough = self._find_enough(_ENOUGH_SHARED if is_shared else _ENOUGH)
        self._asked += 1
        if enough >= largest and 2 * largest <= self._most:
            return min(self._most, max(_LEAST, 2 * largest))
        if self._asked % _UP == 0 and not is_shared:
            return min(self._most, 2 * enough)
        if self._asked % _DOWN == 0:
            return min(self._most, max(_LEAST, enough // 2))
        return enough

    def _find_enough(self, share: float) -> int:
        """Return the smallest size that has this share of the best rate that is known."""
        longest_s = min(self._times_s.values(), default=math.inf) / share
        good = [size for size, time_s in self._times_s.items() if time_s <= longest_s]
        return min(self._most, max(_LEAST, min(good))) if good else self._most
