"""Which models are in memory: loaded once when first wanted, least recently used first out.

Loads run in a few threads of their own. Requests for a model that is being loaded wait for that one
load; requests for other models never notice it. A model whose images are on their way is pinned and
stays, and so does one that an operator has asked for.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from core.clock import monotonic_s
from core.errors import AppError

logger = logging.getLogger(__name__)

M = TypeVar("M")
Key = tuple[str, str]

LOADERS = 4
#: A load that failed is not tried again for so long; the store or an operator may need to act.
FAILED_S = 5.0
#: The same where trying again soon may well help.
FAILED_RETRYABLE_S = 1.0
_MAX_FAILED = 1024


class Resident(Protocol):
    """A model in memory, as far as this module looks into it."""

    @property
    def size_bytes(self) -> int:
        """What evicting it frees."""


@dataclass(eq=False, slots=True)
class _Place:
    resident: Any
    pins: int = 0
    is_kept: bool = False  #: an operator wants it here
    is_unwanted: bool = False  #: an operator wants it gone, as soon as its images are


@dataclass(eq=False, slots=True)
class _Load:
    """A load under way, and how many wait for it."""

    future: Future[Any] = field(default_factory=Future)
    waiters: int = 1


class Residency(Generic[M]):
    """The models in memory, by key (digests of adapter and config); safe from any thread.

    Args:
        load: makes a model resident; blocking, called in a loader thread.
        evict: frees it; called in a loader thread.
        max_bytes: of all models together; exceeded while those in use need more.
        loaders: how many loads run at once.
        clock: seconds that never jump; for tests.
    """

    def __init__(
        self,
        load: Callable[[M], Resident],
        evict: Callable[[Any], None],
        *,
        max_bytes: int,
        loaders: int = LOADERS,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self._load = load
        self._evict = evict
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._places: OrderedDict[Key, _Place] = OrderedDict()
        self._bytes = 0
        self._loading: dict[Key, _Load] = {}
        self._failed: dict[Key, tuple[float, Exception]] = {}
        self._pool = ThreadPoolExecutor(loaders, thread_name_prefix="load")
        self._is_closed = False
        self._loads = self._failed_loads = self._evictions = 0

    def count(self) -> dict[str, int]:
        """Return models and bytes in memory now, and loads, failed_loads, evictions so far."""
        return {
            "models": len(self._places),
            "bytes": self._bytes,
            "loads": self._loads,
            "failed_loads": self._failed_loads,
            "evictions": self._evictions,
        }

    def list_keys(self) -> list[Key]:
        """Return the keys of the models in memory, least recently used first."""
        with self._lock:
            return list(self._places)

    def is_resident(self, key: Key) -> bool:
        """Return whether a request for the model would wait for no load."""
        place = self._places.get(key)
        return place is not None and not place.is_unwanted

    def pin(self, key: Key) -> Any | None:  # noqa: ANN401 - the engine's own type
        """Return the model and keep it until `unpin`, or None if it is not in memory."""
        with self._lock:
            place = self._places.get(key)
            if place is None or place.is_unwanted:
                return None
            place.pins += 1
            self._places.move_to_end(key)
            return place.resident

    def unpin(self, key: Key) -> None:
        """Let go of a model that `pin` or `load` gave."""
        with self._lock:
            place = self._places[key]
            place.pins -= 1
            is_over = place.is_unwanted or self._bytes > self._max_bytes
            if place.pins or not is_over:
                return
        self._schedule_room()

    def load(self, key: Key, model: M) -> Future[Any]:
        """Return the load of a model that `pin` has not found: the one under way, or a new one.

        Its result is the model, pinned: each call that succeeds owes one `unpin`. So a model is not
        pushed out again between its load and its first use. A load that failed a moment ago fails
        again at once, with the same error.
        """
        with self._lock:
            place = self._places.get(key)
            if place is not None:
                place.is_unwanted = False
                place.pins += 1
                return _done(place.resident)
            running = self._loading.get(key)
            if running is not None:
                running.waiters += 1
                return running.future
            failed = self._failed.get(key)
            if failed is not None and self._clock() < failed[0]:
                future: Future[Any] = Future()
                # Or it would grow by every request that it ends.
                future.set_exception(failed[1].with_traceback(None))
                return future
            running = self._loading[key] = _Load()
        self._pool.submit(self._run, key, model, running)
        return running.future

    def keep(self, key: Key) -> bool:
        """Keep a pinned model until `drop`; return False where the kept ones leave no room."""
        with self._lock:
            place = self._places[key]
            kept_bytes = sum(p.resident.size_bytes for p in self._places.values() if p.is_kept)
            if not place.is_kept and kept_bytes + place.resident.size_bytes > self._max_bytes:
                return False
            place.is_kept = True
            place.is_unwanted = False
            return True

    def drop(self, key: Key) -> bool:
        """Free a model as soon as none of its images is on its way; return whether it was here."""
        with self._lock:
            place = self._places.get(key)
            if place is None:
                return False
            place.is_kept = False
            place.is_unwanted = True
        self._schedule_room()
        return True

    def close(self) -> None:
        """Begin no more loads; wait for those under way."""
        self._is_closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, key: Key, model: M, load: _Load) -> None:
        try:
            resident = self._load(model)
        except Exception as error:
            if not isinstance(error, AppError):
                logger.exception("the model with the adapter %s could not be loaded", key[0][:12])
            with self._lock:
                self._failed_loads += 1
                del self._loading[key]
                self._remember(key, error)
            load.future.set_exception(error)
            return
        with self._lock:
            self._loads += 1
            self._failed.pop(key, None)
            del self._loading[key]
            self._places[key] = _Place(resident, pins=load.waiters)
            self._bytes += resident.size_bytes
        load.future.set_result(resident)
        self._make_room()

    def _remember(self, key: Key, error: Exception) -> None:
        now_s = self._clock()
        if len(self._failed) >= _MAX_FAILED:
            self._failed = {k: f for k, f in self._failed.items() if f[0] > now_s}
        if len(self._failed) < _MAX_FAILED:
            is_soon = isinstance(error, AppError) and error.retryable
            self._failed[key] = (now_s + (FAILED_RETRYABLE_S if is_soon else FAILED_S), error)

    def _schedule_room(self) -> None:
        if not self._is_closed:
            self._pool.submit(self._make_room)

    def _make_room(self) -> None:
        """Evict what is unwanted, and the least recently used until the rest fits."""
        leaving = []
        with self._lock:
            for key, place in list(self._places.items()):
                is_surplus = self._bytes > self._max_bytes and not place.is_kept
                # The last one stays, however large: its next request would load it again.
                is_last = len(self._places) == 1
                if place.pins or not (place.is_unwanted or (is_surplus and not is_last)):
                    continue
                del self._places[key]
                self._bytes -= place.resident.size_bytes
                self._evictions += 1
                leaving.append(place.resident)
        for resident in leaving:
            self._evict(resident)


def _done(resident: object) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(resident)
    return future
