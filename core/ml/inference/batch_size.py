"""How large a batch may grow: as far as it pays, and no further.

Whoever comes next waits for the batch that runs. On a GPU a larger one costs hardly more time; on a
CPU sixteen images take nearly twice as long as eight, and only the wait grows. No formula tells
which: the time of one image, which all cores share, does not lie on the line of the others. So the
rate of every size is measured, sizes in powers of two, and the smallest is taken whose rate is
nearly the best. As long as that is the largest size known, the next batch after it has twice as
much. Later one has half of that size now and then, or twice, so that what is nearly the best stays
known.
"""

import math

#: Share of the best rate at which a size is large enough: where those who wait do so for their own
#: images, and where a project that asks little waits for the batches of others.
_ENOUGH, _ENOUGH_BESIDE_MODEST = 0.96, 0.7
#: No batch is held smaller than this, however little a larger one would gain.
_LEAST = 2
#: Weight of the newest batch in the rate of its size, and in those of the others: a machine that is
#: busier now is so for all sizes, and one not seen for long must not look better for that.
_NEWEST, _NEWEST_ELSEWHERE = 0.2, 0.1
#: Of so many batches one is of half the size, and of so many one of twice the size.
_DOWN, _UP = 8, 32


class BatchSize:
    """The size for one network. Not safe by itself: lock it.

    Args:
        most: images that a batch may have at the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._times_s: dict[int, float] = {}
        self._newest = 0  #: the size that was added last
        self._asked = 0

    def add(self, images: int, took_s: float) -> None:
        """Take a batch of so many images, which took so long, into account."""
        self._newest = size = 1 << (images.bit_length() - 1)
        newest_s = took_s / images
        known_s = self._times_s.get(size)
        if known_s is None:
            self._times_s[size] = newest_s
            return
        change = min(2.0, newest_s / known_s) - 1.0  # whatever made it longer still is an accident
        for other in self._times_s:
            weight = _NEWEST if other == size else _NEWEST_ELSEWHERE
            self._times_s[other] *= 1.0 + weight * change

    def find(self, *, beside_modest: bool = False) -> int:
        """Return how many images the next batch may have.

        Args:
            beside_modest: whether a project that asks little waits for the batches of others.
        """
        largest = max(self._times_s, default=0)
        enough = self._find_enough(_ENOUGH)
        self._asked += 1
        if enough >= largest == self._newest and 2 * largest <= self._most:
            return min(self._most, max(_LEAST, 2 * largest))
        if beside_modest:
            enough = self._find_enough(_ENOUGH_BESIDE_MODEST)
        elif self._asked % _UP == 0:
            return min(self._most, 2 * enough)
        if self._asked % _DOWN == 0:
            return min(self._most, max(_LEAST, enough // 2))
        return enough

    def _find_enough(self, share: float) -> int:
        """Return the smallest size that has this share of the best rate that is known."""
        longest_s = min(self._times_s.values(), default=math.inf) / share
        good = [size for size, time_s in self._times_s.items() if time_s <= longest_s]
        return min(self._most, max(_LEAST, min(good, default=_LEAST)))
