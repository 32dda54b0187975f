"""The engine's metrics among those of a front."""

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class EngineMetrics(Collector):
    """The engine's metrics among those of a front: the same in every front of an engine."""

    def __init__(self, read: Callable[[], str | None]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        """Ask the engine."""
        text = self._read()
        is_up = text is not None
        yield GaugeMetricFamily("idat_engine_up", "Whether the engine answers.", value=is_up)
        if text is not None:
            yield from text_string_to_metric_families(text)  # type: ignore[no-untyped-call]  # of the library
