"""The lines of batch predictions, and the progress that is told."""

import io
import json
from typing import Any

import numpy as np
import pytest

from core.ml.data.preprocess import ImageError
from core.ml.inference.engine import Output
from core.ml.inference.scores import OutputFunction
from worker import prediction_images
from worker.prediction_images import Picture, PictureProgress
from worker.prediction_lines import LineWriter

PIXELS = np.zeros((2, 2, 3), np.uint8)


def output(*logits: float) -> Output:
    return Output(np.array(logits, np.float32), np.zeros(1, np.float32))


def write(
    batch: list[Picture], outputs: list[Output], threshold: float | None = None
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    file = io.BytesIO()
    writer = LineWriter(
        file, classes=["a", "b"], top_k=2, function=OutputFunction.NONE, threshold=threshold
    )
    writer.write(batch, outputs)
    data = file.getvalue()
    assert data.isascii()
    return [json.loads(line) for line in data.splitlines()], writer.counts


def test_answers_go_to_the_images_that_have_pixels() -> None:
    error = ImageError("It is none", "send one", code="unsupported_format")
    batch = [
        Picture("bad\nname", None, error=error),
        Picture("ü\u2028.png", PIXELS, label="b"),
        Picture("worse", None, label="a", error=error),
        Picture("last", PIXELS),
    ]
    lines, counts = write(batch, [output(1, 2), output(4, 3)])
    failure = {"code": "unsupported_format", "message": "It is none: send one."}
    assert lines == [
        {"id": "bad\nname", "error": failure},
        {
            "id": "ü\u2028.png",
            "label": "b",
            "predictions": [{"label": "b", "score": 2.0}, {"label": "a", "score": 1.0}],
            "rejected": False,
        },
        {"id": "worse", "label": "a", "error": failure},
        {
            "id": "last",
            "predictions": [{"label": "a", "score": 4.0}, {"label": "b", "score": 3.0}],
            "rejected": False,
        },
    ]
    assert counts == {"predicted": 2, "rejected": 0, "failed": 2}


def test_a_batch_of_bad_images_alone() -> None:
    error = ImageError("It is none", "send one", code="unsupported_format")
    lines, counts = write([Picture("bad", None, error=error)], [])
    assert [line["error"]["code"] for line in lines] == ["unsupported_format"]
    assert counts["failed"] == 1


@pytest.mark.parametrize("logit", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_no_scores(logit: float) -> None:
    batch = [Picture("one", PIXELS), Picture("two", PIXELS)]
    lines, counts = write(batch, [output(logit, 1), output(1, 2)], threshold=1.5)
    assert lines[0]["error"]["code"] == "scores_not_finite"
    assert lines[1]["predictions"][0] == {"label": "b", "score": 2.0}
    assert counts == {"predicted": 1, "rejected": 0, "failed": 1}


def test_the_best_score_below_the_threshold_rejects() -> None:
    lines, counts = write([Picture("one", PIXELS)], [output(1, 2)], threshold=2.5)
    (line,) = lines
    assert line["rejected"] is True
    assert line["predictions"] == [{"label": "", "score": 2.0, "rejected": True}]
    assert counts == {"predicted": 0, "rejected": 1, "failed": 0}


def test_progress_is_told_seldom_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, told = 0.0, []
    monkeypatch.setattr(prediction_images, "monotonic_s", lambda: now_s)
    monkeypatch.setattr(prediction_images, "send", told.append)
    progress = PictureProgress(100)
    progress.tell(0)
    now_s = 10.0
    progress.begin()
    now_s = 10.1
    progress.tell(5)
    now_s = 10.2
    progress.tell(10)  # not yet again
    now_s = 12.0
    progress.tell(20)
    now_s = 12.1
    progress.tell(100)
    assert [(one["images"], one["eta_s"]) for one in told] == [
        (0, None),
        (5, 1.9),
        (20, 8.0),
        (100, 0.0),
    ]
    assert {one["of"] for one in told} == {100}
