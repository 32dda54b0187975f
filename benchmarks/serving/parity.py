"""The gate before any speed is measured: every system gives the scores of the network itself."""

import json
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.serving.models import Stock
from benchmarks.serving.systems import System
from core.ml.backbones.normalise import normalise_images
from core.ml.data.preprocess import preprocess
from core.ml.export.bundle import load_bundle, restore_model

#: Largest difference of a probability: what rounding of weights, activations and pixels may do.
TOLERANCE = {"fp32": 2e-3, "bf16": 8e-2}


class ParityError(Exception):
    """A system answers something else than the network."""


def expect(stock: Stock, models: Sequence[int], images: Sequence[bytes]) -> np.ndarray:
    """Return probabilities (models, images, classes) of the networks run one by one in fp32."""
    backbone = stock.load_network()
    pixels = np.stack([preprocess(image, backbone.image_px) for image in images])
    batch = normalise_images(torch.from_numpy(pixels), backbone)
    found = []
    with torch.no_grad():
        for index in models:
            model = restore_model(load_bundle(stock.bundle(index)), backbone)
            found.append(model(batch).softmax(dim=1).numpy())
    return np.stack(found)


def check(
    system: System, models: Sequence[int], images: Sequence[bytes], expected: np.ndarray
) -> float:
    """Compare a running system's answers; return the largest difference of a probability.

    Raises:
        ParityError: it is beyond what the precision explains.
    """
    largest = 0.0
    for row, index in enumerate(models):
        for column, image in enumerate(images):
            wanted = expected[row, column]
            for score in ask(system, system.names[index], image):
                label = score["label"]
                number = int(str(label).removeprefix("class "))
                largest = max(largest, abs(float(score["score"]) - float(wanted[number])))
    if largest > TOLERANCE[system.precision]:
        raise ParityError(f"{system.label} ({system.precision}) differs by {largest:.2g}")
    return largest


def ask(
    system: System, name: str, image: bytes, *, patience_s: float = 60.0
) -> list[dict[str, Any]]:
    """Return a running system's scores for an image, best first."""
    headers = {key: value.format(model=name) for key, value in system.headers.items()}
    request = urllib.request.Request(
        f"http://127.0.0.1:{system.port}{system.path.format(model=name)}",
        data=image,
        headers={**headers, "Content-Type": "image/jpeg"},
    )
    with urllib.request.urlopen(  # noqa: S310 - this machine
        request, timeout=patience_s
    ) as answer:
        scores: list[dict[str, Any]] = json.load(answer)
        return scores
