"""Measure an adapted model on a split."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.normalise import normalise_images

BATCH_IMAGES = 128


@dataclass(frozen=True)
class Evaluation:
    """How a model does on a split.

    Attributes:
        images: how many were measured.
        correct: how many of them got their own class as the first.
        loss: mean cross-entropy in nats.
    """

    images: int
    correct: int
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of correct images, 0 to 1."""
        return self.correct / self.images

    def to_json(self) -> dict[str, float | int]:
        """Return the figures as plain values."""
        return {
            "images": self.images,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "loss": self.loss,
        }


def evaluate(
    model: AdaptedModel, images: Tensor, labels: Tensor, *, at_once: int = BATCH_IMAGES
) -> Evaluation:
    """Run every image once, without gradients or stochastic depth, and wait once, at the end.

    Args:
        model: what is measured, in its backbone's precision.
        images: uint8 (images, px, px, 3).
        labels: int64 (images,).
        at_once: images on the network at a time.
    """
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=labels.device)
    with torch.no_grad():
        for batch, wanted in zip(
            torch.split(images, at_once), torch.split(labels, at_once), strict=True
        ):
            logits = model(normalise_images(batch, model.backbone))
            correct += (logits.argmax(dim=1) == wanted).sum()
            loss += functional.cross_entropy(logits, wanted, reduction="sum")
    count = labels.shape[0]
    return Evaluation(images=count, correct=int(correct), loss=float(loss) / count)
