"""Whose image is next: projects take turns, counted in images, whatever their requests look like.

Every project has a counter of the images that it was served, divided by its weight, and the least
served one is next. This is deficit round-robin with a quantum of one image, as the counters of
"Fairness in Serving Large Language Models" (arXiv 2401.00588) have it: rounds of larger quanta
would lose their meaning here, where a batch takes images of one batch key only and a project whose
turn it is may have none of that key.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from typing import Generic, TypeVar

T = TypeVar("T")

#: Idle projects whose counters are remembered before those that no longer matter are dropped.
_MAX_REMEMBERED = 1024


@dataclass(eq=False, slots=True)
class _Line(Generic[T]):
    """What a project has waiting, from when it began to wait until nothing of it does.

    Attributes:
        project: whose.
        served: images served, divided by the weight.
        waiting: batch key → items with the number of their arrival, none of them empty.
    """

    project: str
    served: float
    waiting: dict[Hashable, deque[tuple[int, T]]] = field(default_factory=dict)

    def oldest_key(self) -> Hashable:
        return min(self.waiting, key=lambda key: self.waiting[key][0][0])


class FairQueue(Generic[T]):
    """Items of projects, first come first served within a project. Not safe by itself: lock it.

    Of two projects that wait with the same key, neither is served more than one image (per unit of
    weight) more than the other meanwhile; where their keys differ, not more than a batch. A project
    that was idle starts level with the least served one that waits: it banks no credit. Of projects
    that are level the one that came last is next.

    Args:
        weight_of: share of a project relative to others, above 0; asked for every item served.
    """

    def __init__(self, weight_of: Callable[[str], float] | None = None) -> None:
        self._weight_of = weight_of or _equal
        self._lines: dict[str, _Line[T]] = {}
        #: counters of idle projects, which may have been served ahead of those that wait
        self._idle: dict[str, float] = {}
        # Heaps by `served`, as it was when an entry was looked at last. It only grows, so an entry
        # that comes to the top too early is put back where it belongs.
        self._turns: list[tuple[float, int, _Line[T]]] = []
        self._key_turns: dict[
            Hashable, list[tuple[float, int, _Line[T], deque[tuple[int, T]]]]
        ] = {}
        self._counts: dict[Hashable, int] = {}
        self._arrivals = 0
        self._level = 0.0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, item: T, *, project: str, key: Hashable = None) -> None:
        """Let an item wait behind the others of its project."""
        self._arrivals += 1
        line = self._lines.get(project)
        if line is None:
            line = self._begin(project)
        items = line.waiting.get(key)
        if items is None:
            items = line.waiting[key] = deque()
            entry = (line.served, -self._arrivals, line, items)
            heappush(self._key_turns.setdefault(key, []), entry)
        items.append((self._arrivals, item))
        self._counts[key] = self._counts.get(key, 0) + 1
        self._size += 1

    def count(self, key: Hashable = None) -> int:
        """Return how many items of this key wait."""
        return self._counts.get(key, 0)

    def is_modest(self, project: str, key: Hashable = None) -> bool:
        """Say whether a project has at most half as many of this key waiting as others on average.

        One that waits alone is not.
        """
        line, turns = self._lines.get(project), self._key_turns.get(key)
        own = len(line.waiting.get(key, ())) if line is not None else 0
        if turns is None or not own:
            return False
        others = len(turns) - 1
        return others > 0 and 2 * own * others <= self._counts[key] - own

    def next_key(self) -> Hashable:
        """Return the batch key that the least served project's oldest item has.

        Raises:
            IndexError: nothing waits.
        """
        return self._find_leader().oldest_key()

    def find_next(self, key: Hashable = None) -> T | None:
        """Return the item of this key whose turn it is, and leave it there; None if none has it."""
        turns = self._key_turns.get(key)
        if turns is None:
            return None
        _settle(turns)
        return turns[0][3][0][1]

    def pop(self, key: Hashable = None, *, is_charged: bool = True) -> T:
        """Take the item that `find_next` shows.

        Args:
            key: its batch key.
            is_charged: whether it counts as served; an item that is thrown away does not.

        Raises:
            KeyError: no item has this key.
        """
        turns = self._key_turns[key]
        _settle(turns)
        line, items = turns[0][2:]
        _, item = items.popleft()
        self._counts[key] -= 1
        self._size -= 1
        if is_charged:
            line.served += 1.0 / self._weight_of(line.project)
        if not items:
            del line.waiting[key]
            heappop(turns)
            if not turns:
                del self._key_turns[key], self._counts[key]
            if not line.waiting:
                self._end(line)
        return item

    def _begin(self, project: str) -> _Line[T]:
        if self._lines:
            self._level = max(self._level, self._find_leader().served)
        line = _Line[T](project, max(self._idle.pop(project, 0.0), self._level))
        self._lines[project] = line
        heappush(self._turns, (line.served, -self._arrivals, line))
        return line

    def _end(self, line: _Line[T]) -> None:
        del self._lines[line.project]
        if not self._lines:  # whoever was served ahead of others was served ahead of nobody
            self._level = max(self._level, line.served)
            self._idle.clear()
            self._turns.clear()
            return
        self._idle[line.project] = line.served
        if len(self._idle) > _MAX_REMEMBERED:
            level = self._find_leader().served
            self._idle = {p: served for p, served in self._idle.items() if served > level}

    def _find_leader(self) -> _Line[T]:
        turns = self._turns
        while True:
            served, arrival, line = turns[0]
            if not line.waiting:
                heappop(turns)
            elif line.served > served:
                heapreplace(turns, (line.served, arrival, line))
            else:
                return line


def _settle(turns: list[tuple[float, int, _Line[T], deque[tuple[int, T]]]]) -> None:
    """Bring the line on top whose turn it is. All entries have items: the last `pop` saw to it."""
    while turns[0][2].served > turns[0][0]:
        _, arrival, line, items = turns[0]
        heapreplace(turns, (line.served, arrival, line, items))


def _equal(_project: str) -> float:
    return 1.0
