"""How many images may be under way at once, so that every one of them can be answered in time.

A batch of B images takes t(B) = a + bB seconds, refitted from every batch that is run. With full
batches of Bmax images, X = Bmax / t(Bmax) images are answered a second. An image admitted as the
q-th waits q / X for the network and t(Bmax) in it, so Q = X * (D - t(Bmax)) images may be under way
if each must be answered within D seconds, less a margin because X is a forecast. The next one is
refused at once, before anything is spent on it, and told when to come back.

A project beside others has only what they leave it of X, so its own images may be fewer.
"""

import math
import threading
from collections.abc import Callable, Iterable

from core.clock import monotonic_s
from core.errors import RateLimitedError, UnavailableError

#: Weight of the past when a batch is added: some forty batches are remembered.
_DECAY = 0.975
#: Part of the deadline that is promised. Whoever is admitted as the last waits for seconds; in them
#: the network may become slower than it was, and the image is received and decoded as well.
_PROMISED = 0.9
#: The images that left are remembered for about so long, to know what the projects take.
_REMEMBERED_S = 1.0
#: Who is left this part of the network by others is as good as alone.
_ALMOST_ALL = 0.95
#: Projects whose images are remembered before those that hardly count any more are dropped.
_MAX_REMEMBERED = 1024
#: A project may go on up to its share when the others have filled the queue, within this factor.
_SHARED_FACTOR = 2


class OverloadedError(UnavailableError):
    """More images wait than can be answered in time."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProjectOverloadedError(RateLimitedError):
    """This project has more under way than its share; others are served."""

    code = "project_overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BatchTimes:
    """The line t(B) = a + bB through the batches run lately. One thread adds, any may read."""

    def __init__(self) -> None:
        self._n = self._b = self._t = self._bb = self._bt = 0.0
        self._line: tuple[float, float] | None = None
        #: images that a batch may have now; None for as many as the setting says
        self.size: int | None = None
        #: batches that run side by side under load, each of which takes what the line says
        self.abreast = 1

    @property
    def line(self) -> tuple[float, float] | None:
        """Seconds (a, b) of a batch and of an image in it; None before the first batch."""
        return self._line

    def add(self, images: int, took_s: float) -> None:
        """Take a batch into account."""
        self._n = self._n * _DECAY + 1
        self._b = self._b * _DECAY + images
        self._t = self._t * _DECAY + took_s
        self._bb = self._bb * _DECAY + images * images
        self._bt = self._bt * _DECAY + images * took_s
        spread = self._n * self._bb - self._b * self._b
        # Batches of one size say nothing of the others: then all is laid on the images, which
        # foresees too long a time for larger batches, and so admits too few rather than too many.
        if spread < 1e-3 * self._bb * self._n:
            self._line = (0.0, self._t / self._b)
            return
        slope = (self._n * self._bt - self._b * self._t) / spread
        start_s = (self._t - slope * self._b) / self._n
        if slope < 0:
            slope, start_s = 0.0, self._t / self._n
        elif start_s < 0:
            slope, start_s = self._bt / self._bb, 0.0
        self._line = (start_s, slope)

    def predict_s(self, images: int) -> float:
        """Return how long a batch will take; 0 before the first one."""
        if self._line is None:
            return 0.0
        return self._line[0] + self._line[1] * images


class Departures:
    """Images a second that leave, of each project and of all; not safe by itself: lock it."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[float, float]] = {}
        self._total = (0.0, 0.0)

    def add(self, project: str, images: int, now_s: float) -> None:
        """Count images that have left."""
        self._total = (_fade(self._total, now_s) + images, now_s)
        own = self._counts.get(project, (0.0, now_s))
        self._counts[project] = (_fade(own, now_s) + images, now_s)
        if len(self._counts) > _MAX_REMEMBERED:
            self._counts = {p: c for p, c in self._counts.items() if _fade(c, now_s) >= 1}

    def find_rate_beside(self, project: str, now_s: float) -> float:
        """Return the images a second of all other projects together."""
        own = _fade(self._counts.get(project, (0.0, now_s)), now_s)
        return max(0.0, _fade(self._total, now_s) - own) / _REMEMBERED_S

    def list_active(self, now_s: float) -> set[str]:
        """Return the projects of which at least an image is still remembered."""
        return {project for project, count in self._counts.items() if _fade(count, now_s) >= 1}


def _fade(count: tuple[float, float], now_s: float) -> float:
    """Return what is left now of a count and of when it was that."""
    return count[0] * math.exp((count[1] - now_s) / _REMEMBERED_S)


class Admission:
    """Counts the images under way, and refuses those that would be answered too late.

    When the queue is full a project that has less than its share of it under way is admitted
    nonetheless: the queue is fair, so it will not wait behind the others.

    Args:
        times: of this network's batches.
        deadline_s: D, in which an answer must be there.
        max_batch: Bmax.
        max_images: never more than so many, however fast the network is.
        max_project_images: of one project; None for no such limit.
        find_rate: images a second that whatever precedes the network can bring; None if unknown.
        weight_of: share of a project relative to others.
        clock: seconds that never jump; for tests.
    """

    def __init__(
        self,
        times: BatchTimes,
        *,
        deadline_s: float,
        max_batch: int,
        max_images: int,
        max_project_images: int | None = None,
        find_rate: Callable[[], float | None] | None = None,
        weight_of: Callable[[str], float] | None = None,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self._times = times
        self._deadline_s = deadline_s
        self._max_batch = max_batch
        self._max_images = max_images
        self._max_project_images = max_project_images
        self._find_rate = find_rate or (lambda: None)
        self._weight_of = weight_of or (lambda _project: 1.0)
        self._clock = clock
        self._departures = Departures()
        self._lock = threading.Lock()
        self._by_project: dict[str, int] = {}
        self._images = 0

    @property
    def images(self) -> int:
        """Images under way."""
        return self._images

    def find_throughput(self) -> float | None:
        """Return X, the images a second of full batches, or None before the first batch."""
        size = self._find_size()
        took_s = self._times.predict_s(size)
        if took_s <= 0:
            return None
        rate = self._find_rate()
        throughput = size * self._times.abreast / took_s
        return throughput if rate is None else min(throughput, rate)

    def limit(self) -> int:
        """Return Q, at least what runs at once: a network slower than the deadline is still used.

        No more than that, though: a whole batch of the setting's size would wait for many of the
        smaller ones that a slow network runs, and most of its images would be late.
        """
        throughput = self.find_throughput()
        if throughput is None:
            return min(2 * self._max_batch, self._max_images)
        size = self._find_size()
        left_s = self._deadline_s * _PROMISED - self._times.predict_s(size)
        floor = size * self._times.abreast
        return min(self._max_images, max(floor, int(throughput * max(0.0, left_s))))

    def check(self, project: str, images: int = 1) -> None:
        """Raise what `enter` would, and count nothing."""
        with self._lock:
            self._check(project, images)

    def enter(self, project: str, images: int) -> None:
        """Count a request's images in, until `leave`.

        Raises:
            ProjectOverloadedError: the project has too much under way.
            OverloadedError: everybody together has.
        """
        with self._lock:
            self._check(project, images)
            self._images += images
            self._by_project[project] = self._by_project.get(project, 0) + images

    def leave(self, project: str, images: int) -> None:
        """Count a request's images out."""
        with self._lock:
            self._images -= images
            self._departures.add(project, images, self._clock())
            left = self._by_project[project] - images
            if left:
                self._by_project[project] = left
            else:
                del self._by_project[project]

    def _check(self, project: str, images: int) -> None:
        own = self._by_project.get(project, 0)
        if self._max_project_images is not None and own + images > self._max_project_images and own:
            message = (
                f"{own} images of this project are under way, the most it may have is "
                f"{self._max_project_images}; send fewer at once"
            )
            raise ProjectOverloadedError(message, self._foresee_s(own))
        limit = self.limit()
        # A request of more images than the limit is taken when it would be alone.
        if not self._images:
            return
        fits = self._images + images <= limit
        part = self._find_part(project)
        if fits and (not own or own + images <= limit * part):
            return
        if not fits and len(self._by_project) == 1 and own:
            raise OverloadedError(_describe(self._images), self._foresee_s(self._images))
        is_within_share = own + images <= limit * self._share_of(project, self._by_project)
        if not fits and is_within_share and self._images + images <= _SHARED_FACTOR * limit:
            return
        if not is_within_share or fits:
            message = (
                f"{own} images of this project are under way, more than its share beside others; "
                "send fewer at once"
            )
            raise ProjectOverloadedError(message, self._foresee_s(own / part))
        raise OverloadedError(_describe(self._images), self._foresee_s(self._images))

    def _find_size(self) -> int:
        """Return Bmax: the setting's, or less where batches are kept smaller."""
        return min(self._max_batch, self._times.size or self._max_batch)

    def _share_of(self, project: str, projects: Iterable[str]) -> float:
        own = self._weight_of(project)
        return own / (own + sum(self._weight_of(p) for p in projects if p != project))

    def _find_part(self, project: str) -> float:
        """Return the part of X that a project has: what others leave of it, at least its share.

        Others count though they may have nothing under way just now: most of the time a quiet
        project that is answered at once has not.
        """
        throughput = self.find_throughput()
        if throughput is None:
            return 1.0
        now_s = self._clock()
        left = 1.0 - self._departures.find_rate_beside(project, now_s) / throughput
        if left > _ALMOST_ALL:
            return 1.0
        projects = self._departures.list_active(now_s).union(self._by_project)
        return max(left, self._share_of(project, projects))

    def _foresee_s(self, images: float) -> float:
        """Return when the network will have come through so many images, at least a second."""
        throughput = self.find_throughput()
        return float(max(1, math.ceil(images / throughput))) if throughput else 1.0


def _describe(images: int) -> str:
    return f"{images} images wait already, as many as can be answered in time; try again"
