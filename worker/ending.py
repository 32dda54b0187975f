"""How an attempt's child may end, and when it is made to."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from core.settings import Settings


class Ending(StrEnum):
    """How a child's life ended."""

    DONE = "done"  #: it did its work
    FAILED = "failed"  #: it said why another attempt would fail too
    STOPPED = "stopped"  #: it handed its work back: the worker shuts down, or the row asked for it
    CRASHED = "crashed"  #: it died, hung, or broke the protocol
    CANCELLED = "cancelled"  #: the row asked for it
    LOST = "lost"  #: the lease was lost or could not be renewed: write nothing more


@dataclass(frozen=True)
class Outcome:
    """The end of a child.

    Attributes:
        ending: how it ended.
        message: its last message (`done` or `failed`), or what is known of a crash.
    """

    ending: Ending
    message: dict[str, Any] = field(default_factory=dict)


class EndedEarlyError(Exception):
    """The attempt must end before the slow work beside it has: that was left behind."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"left slow work behind: {outcome.ending.value}")
        self.outcome = outcome


@dataclass(frozen=True)
class Limits:
    """When a child or a lease is given up.

    Attributes:
        heartbeat_s: longest time between two renewals.
        fence_s: kill the child when the last renewal is older than this.
        progress_timeout_s: kill the child when it has said nothing for so long.
    """

    heartbeat_s: float
    fence_s: float
    progress_timeout_s: float

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the limits that a worker's settings ask for."""
        return cls(
            heartbeat_s=settings.heartbeat_s,
            fence_s=settings.lease_ttl_s * 2 / 3,
            progress_timeout_s=settings.progress_timeout_s,
        )
