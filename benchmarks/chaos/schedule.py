"""Which fault comes when: drawn from a seed, each kind as often as the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Draw:
    """A fault that is due.

    Attributes:
        kind: which.
        gap_s: how long to wait before it.
        pick: which of those that it could strike, 0 to 1.
        length: how long it lasts between its shortest and its longest, 0 to 1.
    """

    kind: str
    gap_s: float
    pick: float
    length: float


def draw_faults(kinds: Sequence[str], *, seed: int, mean_gap_s: float) -> Iterator[Draw]:
    """Yield faults without end: every kind once in random order, then all of them again.

    Args:
        kinds: which there are.
        seed: the same one draws the same faults.
        mean_gap_s: mean time between two of them.
    """
    draw = Random(seed)  # noqa: S311
    while True:
        deck = list(kinds)
        draw.shuffle(deck)
        for kind in deck:
            gap_s = draw.uniform(0.25, 1.75) * mean_gap_s
            yield Draw(kind, gap_s, pick=draw.random(), length=draw.random())
