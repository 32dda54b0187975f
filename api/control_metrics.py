"""The queue, the leases and the sweeps as metrics, for Prometheus.

They are read from the database, and so are the same in every process of the control role: take the
largest value of several, not their sum.
"""

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from core.clock import monotonic_s
from core.platform.db.engine import Database
from core.platform.overview import Overview, find_last_sweep, read_overview, sum_sweeps

logger = logging.getLogger(__name__)

#: However often the metrics are asked for, the database is asked this seldom.
_CACHED_S = 5.0


class ControlMetrics(Collector):
    """Numbers of all projects together.

    Sweeps are counted from the first reading on, as a counter that starts with a past would look
    like a burst.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._read_at_s: float | None = None
        self._overview: Overview | None = None
        self._last_sweep: int | None = None
        self._sweeps = self._faults = 0
        self._done: Counter[str] = Counter()
        self._store: tuple[int, int] | None = None

    def collect(self) -> Iterable[Metric]:
        """Return the numbers, not older than some seconds; prometheus-client's way to ask."""
        with self._lock:
            if self._read_at_s is None or monotonic_s() - self._read_at_s >= _CACHED_S:
                self._refresh()
                self._read_at_s = monotonic_s()
            return list(self._build())

    def _refresh(self) -> None:
        try:
            with self._database.read() as session:
                self._overview = read_overview(session)
                if self._last_sweep is None:
                    self._last_sweep = find_last_sweep(session)
                    self._store = sum_sweeps(session, after=0).store
                    return
                new = sum_sweeps(session, after=self._last_sweep)
        except SQLAlchemyError as error:
            self._overview = None
            logger.warning("the database did not answer for the metrics: %s", type(error).__name__)
            return
        self._last_sweep = new.last
        self._sweeps += new.sweeps
        self._faults += new.faults
        self._done.update(new.counts)
        self._store = new.store or self._store

    def _build(self) -> Iterable[Metric]:
        is_up = self._overview is not None
        yield GaugeMetricFamily("idat_database_up", "Whether the database answered.", value=is_up)
        if self._overview is not None:
            yield _family("idat_jobs", "Jobs, by state.", "state", self._overview.jobs)
            yield _family("idat_datasets", "Datasets, by state.", "state", self._overview.datasets)
            yield _family(
                "idat_batch_predictions",
                "Batch predictions, by state.",
                "state",
                self._overview.batch_predictions,
            )
            yield _family(
                "idat_leases", "Leases that workers hold, by kind.", "kind", self._overview.leases
            )
            yield GaugeMetricFamily(
                "idat_oldest_queued_seconds",
                "Age of the job that has waited longest.",
                value=self._overview.oldest_queued_s,
            )
        yield CounterMetricFamily(
            "idat_sweeps", "Sweeps of workers that had something to tell.", value=self._sweeps
        )
        yield CounterMetricFamily(
            "idat_sweep_faults", "Parts of sweeps that failed.", value=self._faults
        )
        done = CounterMetricFamily(
            "idat_sweep_actions", "What sweeps put right or freed, by kind.", labels=["kind"]
        )
        for kind, count in sorted(self._done.items()):
            done.add_metric([kind], count)
        yield done
        if self._store is not None:
            blobs, size_bytes = self._store
            yield GaugeMetricFamily("idat_store_blobs", "Blobs at the last walk.", value=blobs)
            yield GaugeMetricFamily("idat_store_bytes", "Bytes of them.", value=size_bytes)


def _family(name: str, help_text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], count)
    return family
