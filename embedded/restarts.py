"""When a child that died is started again. Pure bookkeeping: no process, no clock."""

from dataclasses import dataclass

_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 30.0


@dataclass
class RestartPolicy:
    """Wait longer after each quick death, and give up when there are too many in a row.

    Attributes:
        quick_death_s: a child that lived less than this died quickly.
        max_quick_deaths: that many in a row end the stack.
    """

    quick_death_s: float = 10.0
    max_quick_deaths: int = 5
    _quick_deaths: int = 0

    def delay_after_death(self, lived_s: float) -> float | None:
        """Return how many seconds to wait before the next start, None to give up.

        Args:
            lived_s: how long the child that died had lived.
        """
        self._quick_deaths = self._quick_deaths + 1 if lived_s < self.quick_death_s else 0
        if self._quick_deaths >= self.max_quick_deaths:
            return None
        return min(_FIRST_DELAY_S * 2.0 ** max(self._quick_deaths - 1, 0), _LONGEST_DELAY_S)
