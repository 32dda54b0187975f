"""What the customers of a run ask for: a small archive and a few jobs that take seconds."""

import io
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

_SIDE_PX = 24


@dataclass(frozen=True)
class Plan:
    """A kind of job; all jobs of one plan must make the same adapter, byte for byte.

    Attributes:
        name: shown in reports.
        epochs: how long it trains; an epoch has three steps.
        extra: further fields of the request.
        learning_rate: None takes the default.
        error_code: with which it must fail, None if it must succeed.
    """

    name: str
    epochs: int
    extra: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | None = None
    error_code: str | None = None

    def build_request(self, dataset_id: str, key: str) -> dict[str, Any]:
        """Return the body of the request; its key is also among the job's metadata."""
        hyperparameters: dict[str, Any] = {
            "epochs": self.epochs,
            "batch_size": 8,
            "precision": "fp32",
        }
        if self.learning_rate is not None:
            hyperparameters["learning_rate"] = self.learning_rate
        return {
            "dataset_id": dataset_id,
            "name": self.name,
            "method": {"type": "idat", "pair": "starter"},
            "hyperparameters": hyperparameters,
            "metadata": {"key": key},
            **self.extra,
        }


SHORT = Plan("short", epochs=3)
LONG = Plan("long", epochs=20)
FIGURES = Plan("figures", epochs=6, extra={"figures": ["learning_curves", "confusion_matrix"]})
#: What customers choose from; some more often than others.
DEFAULT_PLANS = (SHORT, SHORT, LONG, FIGURES)
#: Ends as failed whatever happens around it: another attempt would meet the same.
DIVERGING = Plan(
    "diverging",
    epochs=8,
    learning_rate=1.0,
    error_code="diverged",
    extra={
        "method": {
            "type": "idat",
            "pair": "starter",
            "adapter": {"kind": "parallel", "scale": 100.0},
            "distillation": {"loss": "mse", "weight": 10_000.0},
        }
    },
)


def build_archive(seed: int) -> bytes:
    """Return a zip of gratings, one orientation a class: 24 train, 8 val, 8 test; always the same.

    Args:
        seed: other pictures for each.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX] / _SIDE_PX
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, images in (("train", 12), ("val", 4), ("test", 4)):
            for label in ("level", "upright"):
                axis = rows if label == "level" else columns
                for index in range(images):
                    wave = np.sin(20 * axis + rng.uniform(0, 2 * np.pi))
                    pixels = 128 + 90 * wave[..., None] + rng.normal(0, 40, (_SIDE_PX, _SIDE_PX, 3))
                    picture = io.BytesIO()
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(picture, "PNG")
                    # With a date of its own, or two archives of one seed would differ.
                    entry = zipfile.ZipInfo(f"{split}/{label}/{index:03d}.png")
                    archive.writestr(entry, picture.getvalue())
    return buffer.getvalue()
