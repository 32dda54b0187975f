"""What a model says about the images of a split: logits, and the features that its head reads."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.ml.adapters.adapted import AdaptedModel
from core.ml.analysis.arrays import log_softmax
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.normalise import normalise_images
from core.ml.training.evaluate import BATCH_IMAGES

#: Called with (images done, images in all) after every batch.
OnBatch = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits of n images, and what follows from them.

    Attributes:
        logits: float64 (n, classes).
        labels: int64 (n,), the classes that the images belong to.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """The class with the highest logit, (n,)."""
        predicted: NDArray[np.int64] = self.logits.argmax(axis=1)
        return predicted

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that is the image's own class, (n,)."""
        correct: NDArray[np.bool_] = self.predicted == self.labels
        return correct

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """The softmax of the logits, (n, classes)."""
        return np.exp(log_softmax(self.logits))

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """The probability of the predicted class, (n,)."""
        confidence: NDArray[np.float64] = self.probabilities.max(axis=1)
        return confidence


def predict(
    model: AdaptedModel, images: Tensor, labels: Tensor, *, on_batch: OnBatch | None = None
) -> Predictions:
    """Run every image once, without gradients or stochastic depth.

    Args:
        model: in its backbone's precision.
        images: uint8 (n, px, px, 3), on the backbone's device.
        labels: int64 (n,).
        on_batch: hears how far it is.
    """
    logits = _map_batches(
        lambda batch: model(normalise_images(batch, model.backbone)), images, on_batch
    )
    return Predictions(logits.astype(np.float64), labels.cpu().numpy())


def extract_features(
    model: AdaptedModel, images: Tensor, *, on_batch: OnBatch | None = None
) -> NDArray[np.float32]:
    """Return what the model's head reads, (n, F): the pooled features.

    Args:
        model: in its backbone's precision.
        images: uint8 (n, px, px, 3), on the backbone's device.
        on_batch: hears how far it is.
    """
    return _map_batches(
        lambda batch: model.features(normalise_images(batch, model.backbone)), images, on_batch
    )


def extract_frozen_features(
    backbone: LoadedBackbone, images: Tensor, *, on_batch: OnBatch | None = None
) -> NDArray[np.float32]:
    """Return the pooled features of the network without any adapter, (n, F).

    Args:
        backbone: the frozen network.
        images: uint8 (n, px, px, 3), on its device.
        on_batch: hears how far it is.
    """
    return _map_batches(
        lambda batch: backbone.module(normalise_images(batch, backbone)), images, on_batch
    )


def _map_batches(
    run: Callable[[Tensor], Tensor], images: Tensor, on_batch: OnBatch | None
) -> NDArray[np.float32]:
    results, done = [], 0
    with torch.no_grad():
        for batch in torch.split(images, BATCH_IMAGES):
            results.append(run(batch).float().cpu().numpy())
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(images))
    return np.concatenate(results)
