"""What this process counts while it answers images, for Prometheus.

Everything is kept in a registry of the process's own, so that several applications can live in one
test. Names follow Prometheus: base units, `_total` for counters.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import ClientDisconnect

from core.errors import AppError

#: Models that have a series of their own; those that come later share the label `other`. A scrape
#: must not grow with the number of models.
MAX_MODEL_SERIES = 200
_OTHER = "other"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_IMAGES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256)


class Answered(Protocol):
    """The times of an answer."""

    @property
    def decode_ms(self) -> float:
        """Until the last image was decoded."""

    @property
    def queue_ms(self) -> float:
        """Longest wait for the network."""


class LaneView(Protocol):
    """What is asked of a backbone's lane when the metrics are read."""

    backbone: str

    def count_images(self) -> tuple[int, int, int]:
        """Return the images under way, those that wait for the network, and the limit."""


class ResidencyView(Protocol):
    """What is asked of the models in memory."""

    def count(self) -> dict[str, int]:
        """Return models, bytes, loads, failed_loads and evictions."""


class ServingMetrics:
    """Counters and histograms of the inference role.

    Args:
        precision: number format of the networks.
    """

    def __init__(self, *, precision: str = "fp32") -> None:
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
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._decode = Histogram(
            "idat_decode_seconds",
            "Time from a request's body to its decoded images, waiting included.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queue = Histogram(
            "idat_queue_seconds",
            "Wait of a request's decoded images for the network.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._requests = Counter(
            "idat_inference_requests",
            "Requests for a model, by what became of them.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._images = Counter(
            "idat_inference_images",
            "Images answered, by model.",
            ["model"],
            registry=self.registry,
        )
        self._rejections = Counter(
            "idat_rejections",
            "Requests refused before anything was spent on them, by reason.",
            ["reason"],
            registry=self.registry,
        )
        # Looking a series up by its labels costs more than counting; so they are looked up once.
        self._of_model: dict[str, tuple[Counter, Counter]] = {}

    def watch(self, residency: ResidencyView, list_lanes: Callable[[], Sequence[LaneView]]) -> None:
        """Show, whenever the metrics are read, what is in memory and under way then."""
        self.registry.register(_Now(residency, list_lanes))

    def observe_batch(self, backbone: str, images: int, took_s: float) -> None:
        """Count a batch."""
        self._batch_images.labels(backbone).observe(images)
        self._forward.labels(backbone).observe(took_s)

    def count_answer(self, model_id: str, images: int, answer: Answered) -> None:
        """Count a request that was answered."""
        answered, answered_images = self._series_of(model_id)
        answered.inc()
        answered_images.inc(images)
        self._decode.observe(answer.decode_ms / 1000)
        self._queue.observe(answer.queue_ms / 1000)

    def count_failure(self, model_id: str, error: Exception) -> None:
        """Count a request that was admitted and not answered."""
        self._series_of(model_id)
        label = model_id if model_id in self._of_model else _OTHER
        self._requests.labels(label, _name(error)).inc()

    def count_rejection(self, error: Exception) -> None:
        """Count a request that was refused."""
        self._rejections.labels(_name(error)).inc()

    def _series_of(self, model_id: str) -> tuple[Counter, Counter]:
        series = self._of_model.get(model_id)
        if series is None:
            is_full = len(self._of_model) >= MAX_MODEL_SERIES
            label = _OTHER if is_full else model_id
            series = (self._requests.labels(label, "answered"), self._images.labels(label))
            if not is_full:
                self._of_model[model_id] = series
        return series


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


def _name(error: Exception) -> str:
    if isinstance(error, AppError):
        return error.code
    return "disconnected" if isinstance(error, ClientDisconnect) else "internal_error"
