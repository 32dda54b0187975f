"""A model as two files: `adapter.safetensors` (adapters and head, fp32) and `config.json`.

The backbone is not in it: `config.json` names it by timm name and by the SHA-256 of its weights.
Both files have the same bytes whenever the same model is written. A bundle that is read may come
from anywhere, so nothing in it is trusted before it is checked.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from core.catalog.backbones import find_backbone
from core.catalog.methods import AdapterKind
from core.errors import InvalidError, TooLargeError
from core.ml.adapters.adapted import AdaptedModel, check_adapter_state, check_finite
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.shapes import adapter_shapes
from core.ml.backbones.load import LoadedBackbone, WeightsMismatchError
from core.ml.data.preprocess import PREPROCESS_VERSION
from core.ml.data.resize import VERSIONS
from core.ml.export.certificate import (
    CERTIFICATE_KEY,
    Certificate,
    certify,
    read_certificate,
)

ADAPTER_FILE = "adapter.safetensors"
CONFIG_FILE = "config.json"
FORMAT_VERSION = 1

_MAX_HEADER_BYTES = 2**20
_MAX_CONFIG_BYTES = 8 * 2**20
#: Large enough for all weights of a ViT-H, which the kind `full` stores.
_MAX_ADAPTER_BYTES = 4 * 2**30
_LENGTH_BYTES = 8


class InvalidBundleError(InvalidError):
    """The files are not a bundle that this version reads."""

    code = "invalid_model_bundle"


@dataclass(frozen=True)
class BundleBackbone:
    """The network that a bundle's adapters belong in.

    Attributes:
        name: exact timm name.
        weights_sha256: name of the weights that the adapters were trained on.
        image_px: side of the square input.
        mean: per-channel mean, of values in 0..1.
        std: per-channel standard deviation.
        num_features: width of the pooled features.
        block_widths: width of the residual stream in every block.
        preprocess_version: of the preprocessing that made the pixels it was trained on.
    """

    name: str
    weights_sha256: str
    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_features: int
    block_widths: tuple[int, ...]
    preprocess_version: int


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked model, in memory.

    Attributes:
        backbone: what it needs.
        spec: its adapter.
        classes: names, in the order of the logits.
        state: adapters and head, fp32, on the CPU.
        sha256: of `adapter.safetensors`.
        config: all of `config.json`, for display.
        config_sha256: of `config.json`.
        certificate: what it answered where it was trained; None in bundles of earlier releases.
    """

    backbone: BundleBackbone
    spec: AdapterSpec
    classes: tuple[str, ...]
    state: Mapping[str, Tensor]
    sha256: str
    config: Mapping[str, Any]
    config_sha256: str
    certificate: Certificate | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of the adapters and the head in memory."""
        return sum(tensor.nbytes for tensor in self.state.values())


def save_bundle(
    folder: Path,
    model: AdaptedModel,
    *,
    classes: list[str],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    versions: Mapping[str, str],
    teacher: Mapping[str, Any] | None = None,
    preprocess_version: int = PREPROCESS_VERSION,
) -> Bundle:
    """Write a trained student and return what `load_bundle` would.

    Args:
        folder: made if it is not there; files in it are replaced.
        model: the student.
        classes: names, in the order of the logits.
        recipe: hyperparameters and seed, as JSON values.
        metrics: figures of the run, as JSON values without times of day, so that a repeated run
            writes the same bytes.
        versions: of the libraries that trained it.
        teacher: name and weights SHA-256 of the teacher's backbone; None without one.
        preprocess_version: of the preprocessing that made the pixels it was trained on.

    Raises:
        InvalidBundleError: there are not as many class names as logits.
        AdapterStateError: a weight is not a finite number.
    """
    backbone = model.backbone
    state = {
        name: parameter.detach().to("cpu", torch.float32).contiguous()
        for name, parameter in model.trainable_parameters().items()
    }
    for name, tensor in state.items():
        check_finite(name, tensor)  # before the model is run
    certificate = certify(model)
    config = {
        "format_version": FORMAT_VERSION,
        "backbone": {
            "name": backbone.name,
            "weights_sha256": backbone.weights_sha256,
            "num_features": backbone.num_features,
            "block_widths": list(backbone.block_widths),
        },
        "teacher": dict(teacher) if teacher is not None else None,
        "adapter": {
            "kind": model.spec.kind.value,
            "hidden_dim": model.spec.hidden_dim,
            "scale": model.spec.scale,
        },
        "classes": classes,
        "preprocessing": {
            "image_px": backbone.image_px,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "interpolation": "bicubic",
            "resize": "direct",
            "version": preprocess_version,
        },
        "recipe": dict(recipe),
        "metrics": dict(metrics),
        "trainable_parameters": sum(tensor.numel() for tensor in state.values()),
        "versions": dict(versions),
        CERTIFICATE_KEY: None if certificate is None else certificate.to_json(),
    }
    adapter = safetensors.torch.save(state, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    bundle = parse_bundle(adapter, text.encode())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_FILE).write_bytes(adapter)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    return bundle


def load_bundle(folder: Path) -> Bundle:
    """Read and check the bundle in `folder`.

    Raises:
        InvalidBundleError: a file is missing, malformed, or contradicts the other.
        AdapterStateError: tensors are missing, unknown, misshapen or not finite.
        TooLargeError: a file is beyond any model's size.
    """
    files = {}
    for name, limit in ((ADAPTER_FILE, _MAX_ADAPTER_BYTES), (CONFIG_FILE, _MAX_CONFIG_BYTES)):
        path = folder / name
        if not path.is_file():
            raise InvalidBundleError(f"the bundle has no {name}")
        if path.stat().st_size > limit:
            raise TooLargeError(f"{name} is over {limit} bytes")
        files[name] = path.read_bytes()
    return parse_bundle(files[ADAPTER_FILE], files[CONFIG_FILE])


def parse_bundle(adapter: bytes, config: bytes) -> Bundle:
    """Check the two files of a bundle; raises what `load_bundle` does."""
    try:
        fields = json.loads(config)
        if not isinstance(fields, dict):
            raise InvalidBundleError(f"{CONFIG_FILE} is not a JSON object")
        if fields.get("format_version") != FORMAT_VERSION:
            raise InvalidBundleError(
                f"{CONFIG_FILE} has format_version {fields.get('format_version')!r}; "
                f"this version reads {FORMAT_VERSION}"
            )
        backbone = _read_backbone(fields)
        spec = AdapterSpec(
            AdapterKind(fields["adapter"]["kind"]),
            int(fields["adapter"]["hidden_dim"]),
            float(fields["adapter"]["scale"]),
        )
        classes = tuple(str(name) for name in fields["classes"])
        certificate = read_certificate(fields, len(classes))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidBundleError(f"{CONFIG_FILE} is malformed: {error!r}") from error
    if len(classes) < 2 or len(set(classes)) != len(classes):  # noqa: PLR2004 - nothing to tell apart
        raise InvalidBundleError("classes must be two or more different names")
    state = _read_tensors(adapter)
    shapes = adapter_shapes(spec, backbone.block_widths, backbone.num_features, len(classes))
    if shapes is not None:
        check_adapter_state(state, shapes)
    else:  # the names and shapes are checked when it is loaded into its network
        for name, tensor in state.items():
            check_finite(name, tensor)
    return Bundle(
        backbone=backbone,
        spec=spec,
        classes=classes,
        state=state,
        sha256=hashlib.sha256(adapter).hexdigest(),
        config=fields,
        config_sha256=hashlib.sha256(config).hexdigest(),
        certificate=certificate,
    )


def check_weights(bundle: Bundle, backbone: LoadedBackbone) -> None:
    """Refuse a network whose weights are not those that a stored model was trained on.

    Raises:
        WeightsMismatchError: naming both.
    """
    wanted = bundle.backbone
    if wanted.weights_sha256 != backbone.weights_sha256:
        raise WeightsMismatchError(
            f"this model was trained on {wanted.name} with weights "
            f"{wanted.weights_sha256[:12]}…, but the weights here are "
            f"{backbone.weights_sha256[:12]}…; install the file that it was trained on"
        )


def restore_model(bundle: Bundle, backbone: LoadedBackbone) -> AdaptedModel:
    """Put a stored model's adapters and head on its network, ready to answer.

    Args:
        bundle: the stored model.
        backbone: its network, in any number format and on any device.

    Raises:
        WeightsMismatchError: the network's weights are not those that it was trained on.
        AdapterStateError: the stored tensors do not fit it.
        UnsupportedAdapterError: the kind has no place in it.
    """
    check_weights(bundle, backbone)
    model = AdaptedModel(backbone, bundle.spec, len(bundle.classes), seed=0)
    model.load_adapter_state(bundle.state)
    model.requires_grad_(requires_grad=False)
    return model


def _read_backbone(fields: Mapping[str, Any]) -> BundleBackbone:
    network, preprocessing = fields["backbone"], fields["preprocessing"]
    red, green, blue = (float(value) for value in preprocessing["mean"])
    red_std, green_std, blue_std = (float(value) for value in preprocessing["std"])
    backbone = BundleBackbone(
        name=str(network["name"]),
        weights_sha256=str(network["weights_sha256"]),
        image_px=int(preprocessing["image_px"]),
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        num_features=int(network["num_features"]),
        block_widths=tuple(int(width) for width in network["block_widths"]),
        # The first release knew one way and did not name it.
        preprocess_version=int(preprocessing.get("version", 1)),
    )
    if backbone.preprocess_version not in VERSIONS:
        raise InvalidBundleError(
            f"the model was trained on images of preprocessing {backbone.preprocess_version}, "
            f"which this version of the service does not know: run a newer one"
        )
    facts = find_backbone(backbone.name)
    if facts is not None and (facts.block_widths, facts.num_features, facts.image_px) != (
        backbone.block_widths,
        backbone.num_features,
        backbone.image_px,
    ):
        raise InvalidBundleError(f"the bundle describes {backbone.name} as it is not")
    return backbone


def _read_tensors(adapter: bytes) -> dict[str, Tensor]:
    # The format allows headers of 100 MB, whose parsing alone would be an attack.
    if len(adapter) < _LENGTH_BYTES:
        raise InvalidBundleError(f"{ADAPTER_FILE} is cut short")
    (header_bytes,) = struct.unpack("<Q", adapter[:_LENGTH_BYTES])
    if header_bytes > _MAX_HEADER_BYTES:
        raise InvalidBundleError(f"{ADAPTER_FILE} has a header of {header_bytes} bytes")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(adapter)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InvalidBundleError(f"{ADAPTER_FILE} cannot be read: {error}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise InvalidBundleError(f"{name} is {tensor.dtype}, not float32")
    return tensors
