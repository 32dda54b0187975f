"""The linear probe: logistic regression on the frozen student's features."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.tasks import SPLITS, U8, Task
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.normalise import normalise_images
from core.ml.data.preprocess import resize_image

#: Inverse strengths of the L2 penalty; the validation split chooses.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_BATCH_IMAGES = 128
_MOST_STEPS = 400


def fit_probe(backbone: LoadedBackbone, task: Task, device: torch.device) -> dict[str, float]:
    """Return accuracies (0..1) on validation and test, and the chosen inverse strength.

    Among equally good strengths the strongest penalty is taken.
    """
    features = {split: extract_features(backbone, task.images[split], device) for split in SPLITS}
    scaler = StandardScaler().fit(features["train"])
    inputs = {split: scaler.transform(features[split]) for split in SPLITS}
    fits = []
    # BLAS threads on matrices this small mostly wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties may need more steps
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=_MOST_STEPS)
            model.fit(inputs["train"], task.labels["train"])
            fits.append((model.score(inputs["val"], task.labels["val"]), -strength, model))
    val, strength, best = max(fits, key=lambda fit: fit[:2])
    test = best.score(inputs["test"], task.labels["test"])
    return {"val": float(val), "test": float(test), "inverse_strength": -strength}


@torch.inference_mode()
def extract_features(
    backbone: LoadedBackbone, images: U8, device: torch.device
) -> NDArray[np.float32]:
    """Return the pooled features (images, num_features) in fp32."""
    backbone.module.to(device)
    pixels = [resize_image(image, backbone.image_px) for image in images]
    parts = torch.split(torch.from_numpy(np.stack(pixels)).to(device), _BATCH_IMAGES)
    features = [backbone.module(normalise_images(part, backbone)).float().cpu() for part in parts]
    return torch.cat(features).numpy()
