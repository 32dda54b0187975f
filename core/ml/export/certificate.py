"""What a model answers to a few made-up images, so that whoever serves it can prove to do the same.

The images come from a written-out generator and are in no data set; the logits lie in
`config.json`. A wrong preprocessing, other weights, a mistake in how adapters of many models are
mixed, or hardware that computes something else shows when a model is made ready, and not as a
slightly worse answer later.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.catalog.methods import Precision
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.backbones.normalise import normalise_images

logger = logging.getLogger(__name__)

CERTIFICATE_KEY = "certificate"
GENERATOR = "shake256-blocks-1"
SEED = 0
IMAGES = 4

_CELLS = 8
_DIGITS = 6
#: Largest difference of a logit, as a share of the largest logit (of 1, if none is as large). fp32
#: leaves room for another order of additions and for TF32 in the first convolution; what a wrong
#: model gives is far beyond both.
TOLERANCES = {Precision.FP32: 5e-3, Precision.BF16: 1e-1}


class CertificateError(InvalidError):
    """The model does not answer here as it did where it was trained."""

    code = "certificate_mismatch"


@dataclass(frozen=True, eq=False)
class Certificate:
    """The answers of a model where it was trained.

    Attributes:
        generator: of the images.
        seed: of the generator.
        precision: that the backbone was run in.
        logits: fp32 (images, classes).
    """

    generator: str
    seed: int
    precision: Precision
    logits: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """Return the entry of `config.json`, logits to six digits."""
        return {
            "generator": self.generator,
            "seed": self.seed,
            "precision": self.precision.value,
            "tolerance": TOLERANCES[self.precision],
            "logits": [[float(f"{x:.{_DIGITS}g}") for x in row] for row in self.logits.tolist()],
        }

    def check(self, logits: NDArray[np.float32], precision: Precision) -> None:
        """Compare the logits of the same images, computed here in `precision`.

        Raises:
            CertificateError: naming the difference.
        """
        if self.logits.size == 0:
            return
        tolerance = max(TOLERANCES[self.precision], TOLERANCES[precision])
        allowed = tolerance * max(1.0, float(np.abs(self.logits).max()))
        difference = float(np.abs(logits - self.logits).max())
        if not difference <= allowed:  # NaN, too
            raise CertificateError(
                f"the model does not answer here as it did where it was trained: a logit of its "
                f"certificate's images differs by {difference:.3g}, and {allowed:.3g} is allowed "
                f"({self.precision.value} there, {precision.value} here); its files, the weights "
                "of the backbone or this machine are to blame, so it is not served"
            )


def certify(model: AdaptedModel) -> Certificate | None:
    """Return what `model` answers; None if its logits are not finite numbers.

    On one kind of machine the answer is always the same, number for number.
    """
    backbone = model.backbone
    images = torch.from_numpy(build_golden_images(backbone.image_px)).to(backbone.device)
    with torch.no_grad():
        logits = model(normalise_images(images, backbone)).float().cpu().numpy()
    if not np.isfinite(logits).all():
        logger.warning("the model has no certificate: its logits are not finite")
        return None
    precision = Precision.FP32 if backbone.dtype == torch.float32 else Precision.BF16
    return Certificate(GENERATOR, SEED, precision, logits)


def read_certificate(config: Mapping[str, Any], classes: int) -> Certificate | None:
    """Return the certificate in `config.json`.

    None where there is none, as in bundles of releases before it, and where the images come from a
    generator that is not known here, as in bundles of later ones.

    Raises:
        KeyError: an entry is missing.
        TypeError: an entry has another type.
        ValueError: numbers are not finite or not as many as there are images and classes.
    """
    fields = config.get(CERTIFICATE_KEY)
    if fields is None or (fields["generator"], fields["seed"]) != (GENERATOR, SEED):
        return None
    logits = np.array(fields["logits"], dtype=np.float32)
    if logits.shape != (IMAGES, classes) or not np.isfinite(logits).all():
        raise ValueError(f"the certificate's logits are not {IMAGES} x {classes} finite numbers")
    return Certificate(GENERATOR, SEED, Precision(fields["precision"]), logits)


def build_golden_images(image_px: int) -> NDArray[np.uint8]:
    """Return the images of `GENERATOR`, uint8 (IMAGES, image_px, image_px, 3).

    Four pictures of 8 x 8 coloured cells: of all colours, of nearly the same grey, of the corners
    of the colour cube, and with noise in each pixel. Bytes are those of SHAKE-256 over
    "GENERATOR/SEED/name", and only integers are computed with, so every machine makes the same.
    """
    cells = _draw("cells", (IMAGES, _CELLS, _CELLS, 3))
    noise = _draw("noise", (image_px, image_px, 3))
    where = np.arange(image_px) * _CELLS // image_px
    pictures = cells[:, where][:, :, where]
    pictures[1] = 112 + pictures[1] // 8
    pictures[2] = (pictures[2] // 128) * 255
    pictures[3] = pictures[3] // 2 + noise // 2
    return pictures


def _draw(name: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    digest = hashlib.shake_256(f"{GENERATOR}/{SEED}/{name}".encode())
    data = digest.digest(int(np.prod(shape)))
    return np.frombuffer(data, dtype=np.uint8).reshape(shape).copy()
