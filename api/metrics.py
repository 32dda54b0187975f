"""What this process counts while it answers images, for Prometheus.

Everything is kept in a registry of the process's own, so that several applications can live in one
test. Names follow Prometheus: base units, `_total` for counters.
"""

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import ClientDisconnect

from api.network_metrics import SECONDS
from core.errors import AppError

#: Models that have a series of their own; those that come later share the label `other`. A scrape
#: must not grow with the number of models.
MAX_MODEL_SERIES = 200
_OTHER = "other"


class Answered(Protocol):
    """The times of an answer."""

    @property
    def decode_ms(self) -> float:
        """Until the last image was decoded."""

    @property
    def queue_ms(self) -> float:
        """Longest wait for the network."""


class ServingMetrics:
    """Counters and histograms of the inference role, its networks apart."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._decode = Histogram(
            "idat_decode_seconds",
            "Time from a request's body to its decoded images, waiting included.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queue = Histogram(
            "idat_queue_seconds",
            "Wait of a request's decoded images for the network.",
            buckets=SECONDS,
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


def _name(error: Exception) -> str:
    if isinstance(error, AppError):
        return error.code
    return "disconnected" if isinstance(error, ClientDisconnect) else "internal_error"
