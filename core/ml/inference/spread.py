"""On how many cores of a CPU one image runs: as many as pay, and no more.

Several cores share the work of one image badly: they wait for each other after every operator. A
large network gains by it all the same, a small one takes longer than on one core, and whoever comes
next finds a core less. So the time on every number of cores is measured, in powers of two, and the
smallest number is taken whose time is nearly the shortest. Now and then a neighbour of it is tried,
so that it stays known.
"""

#: More cores are worth having if an image takes less than this part of its time on fewer.
_ENOUGH = 0.8
#: Each number is tried so often before one is chosen: the first time, torch prepares its operators.
_TRIALS = 2
#: Weight of the newest time.
_NEWEST = 0.2
#: Of so many images one runs on another number of cores.
_ELSEWHERE = 16


class Spread:
    """The number for one network. Not safe by itself: lock it.

    Args:
        cores: that there are.
    """

    def __init__(self, cores: int) -> None:
        self._counts = sorted({1 << power for power in range(cores.bit_length())} | {cores})
        self._times_s: dict[int, list[float]] = {count: [] for count in self._counts}
        self._asked = 0

    def add(self, cores: int, took_s: float) -> None:
        """Take an image into account that took so long on so many cores.

        A number that is not among those to choose from is passed over.
        """
        times_s = self._times_s.get(cores)
        if times_s is None:
            return
        if len(times_s) < _TRIALS:
            times_s.append(took_s)
            return
        known_s = min(times_s)
        newest_s = min(took_s, 2.0 * known_s)  # whatever made it longer still is an accident
        times_s[:] = [known_s + _NEWEST * (newest_s - known_s)] * _TRIALS

    def find(self, idle: int) -> int:
        """Return how many of the idle cores, at least one, the next image may have."""
        counts = [count for count in self._counts if count <= idle]
        for count in reversed(counts):
            if len(self._times_s[count]) < _TRIALS:
                return count
        times_s = [min(self._times_s[count]) for count in counts]
        longest_s = min(times_s) / _ENOUGH
        chosen = next(index for index, time_s in enumerate(times_s) if time_s <= longest_s)
        self._asked += 1
        if self._asked % _ELSEWHERE == 0:
            up = (self._asked // _ELSEWHERE) % 2
            chosen = min(len(counts) - 1, chosen + 1) if up else max(0, chosen - 1)
        return counts[chosen]
