"""The lines of a batch prediction: JSON, one an image, the same bytes for the same answers."""

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from core.ml.inference.engine import Output
from core.ml.inference.scores import OutputFunction, Ranked, is_rejected, rank_classes
from worker.prediction_images import Picture


class LineWriter:
    """Writes a line for each image; scores are those that `classify` answers with.

    Args:
        file: takes the lines.
        classes: names, in the order of the logits.
        top_k: classes per image.
        function: what turns logits into scores.
        threshold: an image whose best score is below it is rejected.
    """

    def __init__(
        self,
        file: BinaryIO,
        *,
        classes: Sequence[str],
        top_k: int,
        function: OutputFunction,
        threshold: float | None,
    ) -> None:
        self._file = file
        self._classes = classes
        self._top_k = top_k
        self._function = function
        self._threshold = threshold
        #: lines by kind
        self.counts = {"predicted": 0, "rejected": 0, "failed": 0}

    def write(self, batch: Sequence[Picture], outputs: Sequence[Output]) -> None:
        """Write a batch.

        Args:
            batch: the images.
            outputs: the answers to those of them that have pixels, in their order.
        """
        answers = iter(self._rank(outputs))
        for picture in batch:
            line: dict[str, Any] = {"id": picture.name}
            if picture.label is not None:
                line["label"] = picture.label
            if picture.error is None:
                line |= self._describe(next(answers))
            else:
                line |= self._fail(picture.error.code, picture.error.message)
            self._file.write(json.dumps(line, allow_nan=False, separators=(", ", ": ")).encode())
            self._file.write(b"\n")

    def _rank(self, outputs: Sequence[Output]) -> list[list[Ranked] | None]:
        """Return each image's classes, best first; None where the numbers are none."""
        if not outputs:
            return []
        logits = np.stack([output.logits for output in outputs])
        ranked = rank_classes(logits, self._classes, top_k=self._top_k, function=self._function)
        is_sound = [bool(np.isfinite(row).all()) for row in logits]
        return [one if sound else None for one, sound in zip(ranked, is_sound, strict=True)]

    def _describe(self, ranked: list[Ranked] | None) -> dict[str, Any]:
        if ranked is None:
            return self._fail(
                "scores_not_finite", "The model's numbers overflow on this image: train it anew."
            )
        if is_rejected(ranked, self._threshold):
            self.counts["rejected"] += 1
            # As `classify` has it: a label that no class can have.
            best = {"label": "", "score": ranked[0].score, "rejected": True}
            return {"predictions": [best], "rejected": True}
        self.counts["predicted"] += 1
        predictions = [{"label": one.label, "score": one.score} for one in ranked]
        return {"predictions": predictions, "rejected": False}

    def _fail(self, code: str, message: str) -> dict[str, Any]:
        self.counts["failed"] += 1
        return {"error": {"code": code, "message": message}}
