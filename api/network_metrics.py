"""What the process of the networks counts: batches, models in memory, images under way."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)


class LaneView(Protocol):
    """What is asked of a backbone's lane when the metrics are read."""

    backbone: str

    def count_images(self) -> tuple[int, int, int]:
        """Return the images under way, those that wait for the network, and the limit."""


class ResidencyView(Protocol):
    """What is asked of the models in memory."""

    def count(self) -> dict[str, int]:
        """Return models, bytes, loads, failed_loads and evictions."""


class NetworkMetrics:
    """Counters and histograms of the networks.

    Args:
        precision: number format of the networks.
        residency: models in memory.
        list_lanes: gives the backbones' lanes.
    """

    def __init__(
        self,
        precision: str,
        residency: ResidencyView,
        list_lanes: Callable[[], Sequence[LaneView]],
    ) -> None:
        self.registry = CollectorRegistry()
        Info("idat_networks", "How networks compute.", registry=self.registry).info(
            {"precision": precision}
        )
        self._batch_images = Histogram(
            "idat_batch_images",
            "Images of a batch through a network.",
            ["backbone"],
            buckets=_IMAGES,
            registry=self.registry,
        )
        self._forward = Histogram(
            "idat_forward_seconds",
            "Time of a batch in a network.",
            ["backbone"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.registry.register(_Now(residency, list_lanes))

    def observe_batch(self, backbone: str, images: int, took_s: float) -> None:
        """Count a batch."""
        self._batch_images.labels(backbone).observe(images)
        self._forward.labels(backbone).observe(took_s)


class _Now(Collector):
    def __init__(
        self, residency: ResidencyView, list_lanes: Callable[[], Sequence[LaneView]]
    ) -> None:
        self._residency = residency
        self._list_lanes = list_lanes

    def collect(self) -> Iterable[Metric]:
        counts = self._residency.count()
        yield GaugeMetricFamily("idat_resident_models", "Models in memory.", value=counts["models"])
        yield GaugeMetricFamily("idat_resident_bytes", "Bytes of them.", value=counts["bytes"])
        for name, help_text in (
            ("loads", "Models that were loaded."),
            ("failed_loads", "Loads of models that failed."),
            ("evictions", "Models that were put out of memory."),
        ):
            yield CounterMetricFamily(f"idat_model_{name}", help_text, value=counts[name])
        yield from self._collect_lanes()

    def _collect_lanes(self) -> Iterator[Metric]:
        families = [
            GaugeMetricFamily(name, help_text, labels=["backbone"])
            for name, help_text in (
                ("idat_images_under_way", "Images admitted and not answered yet."),
                ("idat_images_queued", "Decoded images that wait for the network."),
                ("idat_images_limit", "Images that may be under way, as it stands."),
            )
        ]
        for lane in self._list_lanes():
            for family, count in zip(families, lane.count_images(), strict=True):
                family.add_metric([lane.backbone], count)
        yield from families
