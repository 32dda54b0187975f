"""Small real models of the starter student, and ways to put them into an API."""

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from PIL import Image

from core.catalog.methods import AdapterKind
from core.catalog.pairs import STARTER_STUDENT
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import load_backbone
from core.ml.export.bundle import save_bundle

CLASSES = ["ant", "bee", "cat", "dog"]
IMPORT = "/v1/models:import"


@dataclass(frozen=True)
class Files:
    """A bundle's two files."""

    adapter: bytes
    config: bytes

    def form(self) -> dict[str, tuple[str, bytes]]:
        """As an import's form has them."""
        return {
            "adapter": ("adapter.safetensors", self.adapter),
            "config": ("config.json", self.config),
        }

    def change(self, **parts: object) -> "Files":
        """With parts of the config replaced."""
        return Files(self.adapter, json.dumps(json.loads(self.config) | parts).encode())

    def zip(self, folder: str = "") -> bytes:
        """Both in an archive, as somebody may pack them."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{folder}adapter.safetensors", self.adapter)
            archive.writestr(f"{folder}config.json", self.config)
        return buffer.getvalue()


def build_files(
    folder: Path,
    *,
    seed: int = 0,
    kind: AdapterKind = AdapterKind.PARALLEL,
    classes: list[str] | None = None,
) -> Files:
    """The files of a model whose weights are random but large enough to tell images apart."""
    classes = classes or CLASSES
    model = AdaptedModel(
        load_backbone(STARTER_STUDENT), AdapterSpec(kind, 4), len(classes), seed=seed
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    metrics = {"test": {"accuracy": 0.5}}
    save_bundle(folder, model, classes=classes, recipe={}, metrics=metrics, versions={})
    return Files(
        (folder / "adapter.safetensors").read_bytes(), (folder / "config.json").read_bytes()
    )


def import_model(client: httpx.Client, files: Files, name: str = "animals", **fields: str) -> str:
    """Import it; return the model's id."""
    answer = client.post(IMPORT, files=files.form(), data={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def build_picture(seed: int = 0) -> bytes:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def classify(client: httpx.Client, reference: str, picture: bytes) -> httpx.Response:
    """Ask a model."""
    return client.post(
        f"/v1/models/{reference}/classify",
        content=picture,
        headers={"content-type": "image/png"},
    )
