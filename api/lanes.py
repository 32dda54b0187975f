"""What each backbone has of its own: its queue and threads, its batch times, its admission."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from core.ml.inference.admission import Admission, BatchTimes
from core.ml.inference.batcher import Batcher, Ticket
from core.settings import Settings

#: A network that fails so many batches one after the other is not trusted with more.
_MAX_FAILURES = 3


class Lane:
    """One backbone's way from admission to the network."""

    def __init__(
        self,
        backbone: str,
        settings: Settings,
        *,
        forward: Callable[[Sequence[Any], Sequence[Any], int], Sequence[Any]],
        deliver: Callable[[list[Ticket]], None],
        cores: int,
        find_rate: Callable[[], float | None],
        weight_of: Callable[[str], float],
    ) -> None:
        self.backbone = backbone
        self.times = BatchTimes()
        self.admission = Admission(
            self.times,
            deadline_s=settings.inference_deadline_s,
            max_batch=settings.inference_max_batch,
            max_images=settings.inference_max_images,
            max_project_images=settings.inference_project_images or None,
            find_rate=find_rate,
            weight_of=weight_of,
        )
        self.batcher = Batcher(
            backbone,
            forward,
            deliver,
            max_batch=settings.inference_max_batch,
            times=self.times,
            cores=cores,
            weight_of=weight_of,
        )

    def count_images(self) -> tuple[int, int, int]:
        """Return the images under way, those of them that wait for the network, and the limit."""
        return self.admission.images, len(self.batcher), self.admission.limit()

    def find_fault(self) -> str | None:
        """Return why no image should be sent here, or None."""
        failures = self.batcher.failures
        if failures < _MAX_FAILURES:
            return None
        return f"{self.backbone} has failed {failures} batches one after the other"


class Lanes:
    """The lanes of a process, each made when its backbone is first asked for."""

    def __init__(self, build: Callable[[str], Lane]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._lanes: dict[str, Lane] = {}

    def get(self, backbone: str) -> Lane:
        """Return a backbone's lane."""
        lane = self._lanes.get(backbone)
        if lane is not None:
            return lane
        with self._lock:
            if backbone not in self._lanes:
                self._lanes[backbone] = self._build(backbone)
            return self._lanes[backbone]

    def find(self, backbone: str) -> Lane | None:
        """Return a backbone's lane if it has one."""
        return self._lanes.get(backbone)

    def list_all(self) -> list[Lane]:
        """Return all lanes."""
        with self._lock:
            return list(self._lanes.values())
