"""A scrape does not grow with the number of models."""

from dataclasses import dataclass

from prometheus_client import generate_latest

from api.metrics import MAX_MODEL_SERIES, ServingMetrics
from core.errors import DeadlineError


@dataclass
class Answer:
    decode_ms: float = 1.0
    queue_ms: float = 1.0


def test_late_models_share_a_series():
    metrics = ServingMetrics()
    for number in range(MAX_MODEL_SERIES + 50):
        metrics.count_failure(f"mdl_{number}", DeadlineError("late"))
        metrics.count_answer(f"mdl_{number}", 2, Answer())
    value = metrics.registry.get_sample_value
    assert value("idat_inference_images_total", {"model": "mdl_0"}) == 2
    assert value("idat_inference_images_total", {"model": "other"}) == 100
    labels = {"model": "other", "outcome": "deadline_exceeded"}
    assert value("idat_inference_requests_total", labels) == 50
    lines = generate_latest(metrics.registry).decode().splitlines()
    assert len([line for line in lines if line.startswith("idat_inference_images_total")]) == (
        MAX_MODEL_SERIES + 1
    )
