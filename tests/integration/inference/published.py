"""Published models over the starter's real network, for a test's own database and store."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core.catalog.methods import AdapterKind
from core.catalog.pairs import STARTER_STUDENT
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import load_backbone
from core.ml.export.bundle import save_bundle
from core.platform.db.engine import Database
from core.platform.db.tables import ModelRow
from core.platform.models.versions import assign_version
from core.platform.storage.base import BlobStore

PX = 64
ANIMALS = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu"]
BIRDS = ["jay", "kiwi:brown", "owl"]


@dataclass(frozen=True, eq=False)
class Published:
    """A model that the service serves, and the network that it must agree with."""

    id: str
    name: str
    classes: list[str]
    network: AdaptedModel

    def compute(self, picture: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and features of a picture of the network's own size, by hand."""
        pixels = torch.from_numpy(normalise(picture))[None]
        with torch.no_grad():
            features = self.network.features(pixels)
            logits = self.network.head(features)
        return logits[0].numpy(), features[0].numpy()

    def compute_probabilities(self, picture: bytes) -> dict[str, float]:
        """Return the probabilities by class."""
        logits = torch.from_numpy(self.compute(picture)[0])
        return dict(zip(self.classes, torch.softmax(logits, 0).tolist(), strict=True))


def normalise(picture: bytes) -> np.ndarray:
    """Return the pixels of a picture of the network's own size as it reads them: -1..1."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    assert image.size == (PX, PX)
    pixels = np.asarray(image, dtype=np.float32)
    return ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1).copy()


def draw(seed: int, *, encoding: str = "PNG", size: tuple[int, int] = (PX, PX)) -> bytes:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, encoding)
    return buffer.getvalue()


def publish(
    database: Database,
    store: BlobStore,
    folder: Path,
    *,
    model_id: str,
    name: str,
    classes: list[str],
    kind: AdapterKind = AdapterKind.PARALLEL,
    seed: int = 3,
    project: str = "default",
) -> Published:
    """Publish a model whose weights are random but large enough to tell images apart."""
    network = AdaptedModel(
        load_backbone(STARTER_STUDENT), AdapterSpec(kind, 4), len(classes), seed=seed
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10)
    network.eval()
    save_bundle(folder, network, classes=classes, recipe={}, metrics={}, versions={}, teacher=None)
    adapter = (folder / "adapter.safetensors").read_bytes()
    config = (folder / "config.json").read_text()
    with database.write() as session:
        row = ModelRow(
            id=model_id,
            project_id=project,
            name=name,
            backbone=STARTER_STUDENT,
            adapter_sha256=store.put_bytes(adapter).sha256,
            adapter_bytes=len(adapter),
            config_sha256=store.put_bytes(json.dumps(json.loads(config)).encode()).sha256,
            card_sha256=store.put_bytes(b"# a model\n").sha256,
            classes=classes,
            metrics={},
        )
        session.add(row)
        assign_version(session, row)
    return Published(model_id, name, classes, network)
