"""The files that all systems serve from: one network's weights, and any number of small models.

The weights are random, as no hub is asked; speed does not depend on their values, and parity is
checked against the network itself.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.export.bundle import save_bundle

WEIGHTS_FOLDER = "weights"
MODELS_FOLDER = "models"
IMAGES_FOLDER = "images"
#: How far a random adapter moves the features; large enough for models to disagree.
_STRENGTH = 0.05


@dataclass(frozen=True)
class Stock:
    """What is served.

    Attributes:
        folder: holds `weights/`, `models/0000/…` and `images/`.
        network: timm name.
        count: models.
        hidden_dim: of their sequential adapters.
        classes: of each.
    """

    folder: Path
    network: str
    count: int
    hidden_dim: int
    classes: int

    @property
    def weights_dir(self) -> Path:
        """Folder with the network's weights."""
        return self.folder / WEIGHTS_FOLDER

    def bundle(self, index: int) -> Path:
        """Return the folder of a model's bundle."""
        return self.folder / MODELS_FOLDER / f"{index:04d}"

    def images(self) -> list[bytes]:
        """Return the encoded images, in order."""
        return [path.read_bytes() for path in sorted((self.folder / IMAGES_FOLDER).iterdir())]

    def load_network(self) -> LoadedBackbone:
        """Return the network, fp32 on the CPU."""
        return load_backbone(self.network, weights_dir=self.weights_dir)

    def to_json(self) -> str:
        """Return what `from_json` reads, for the processes of the systems."""
        fields = {**self.__dict__, "folder": str(self.folder)}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Stock":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "folder": Path(fields["folder"])})


def make_stock(
    folder: Path, network: str, count: int, *, hidden_dim: int, classes: int, size: tuple[int, int]
) -> Iterator[int]:
    """Write the files; yield the number of models that are done, from 0."""
    (folder / WEIGHTS_FOLDER).mkdir(parents=True)
    (folder / IMAGES_FOLDER).mkdir()
    backbone = load_backbone(network, pretrained=False, seed=0)
    safetensors.torch.save_file(
        backbone.module.state_dict(), folder / WEIGHTS_FOLDER / f"{network}.safetensors"
    )
    for index in range(16):
        name = f"{index:02d}.jpg"
        (folder / IMAGES_FOLDER / name).write_bytes(draw_photograph(index, size))
    # As loaded from the file, so that the bundles name the weights that the systems will load.
    backbone = load_backbone(network, weights_dir=folder / WEIGHTS_FOLDER)
    spec = AdapterSpec(AdapterKind.SEQUENTIAL, hidden_dim)
    names = [f"class {index:03d}" for index in range(classes)]
    for index in range(count):
        model = AdaptedModel(backbone, spec, classes, seed=index)
        draws = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(_STRENGTH * torch.randn(parameter.shape, generator=draws))
        save_bundle(
            folder / MODELS_FOLDER / f"{index:04d}",
            model,
            classes=names,
            recipe={},
            metrics={},
            versions={},
        )
        yield index + 1


def draw_photograph(seed: int, size: tuple[int, int]) -> bytes:
    """Return a JPEG of quality 90 with detail at several scales, the same for a seed."""
    width, height = size
    draws = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cell_px in (4, 16, 64):
        shape = (height // cell_px + 2, width // cell_px + 2, 3)
        coarse = Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8))
        scaled = coarse.resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(scaled, dtype=float) / 3
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
