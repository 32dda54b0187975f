"""A model as one plain timm checkpoint: the adapters written into the weights, the head on top.

    python -m core.ml.export.merged ADAPTER_DIR --out model.safetensors [--weights-dir DIR]

What comes out needs nothing of this package:

    network = timm.create_model(name, num_classes=C)
    network.load_state_dict(safetensors.torch.load_file("model.safetensors"), strict=True)

The starter networks alone must first be made known to timm, by importing
`core.ml.backbones.starter`.

It can be made of the kinds that are a linear change of the network's weights (`mergeable` in
`core.catalog.adapters`), and is as large as the network.
"""

import argparse
import copy
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from core.catalog.adapters import ADAPTERS
from core.catalog.backbones import find_backbone
from core.errors import AppError, InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.merging import not_mergeable
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.data.atomic import replace_file
from core.ml.export.bundle import Bundle, load_bundle, restore_model

logger = logging.getLogger(__name__)

#: Key of the file's one metadata entry, a JSON object.
METADATA_KEY = "timm"


def build_merged(model: AdaptedModel) -> dict[str, Tensor]:
    """Return the state of the plain timm network that gives the logits of `model`.

    The model and its backbone stay as they are. Nothing else may run the backbone meanwhile: its
    hooks would be copied.

    Args:
        model: an adapted model, its backbone in fp32.

    Returns:
        fp32 tensors (and integer buffers, where a network has any) on the CPU, with the names of
        `timm.create_model(name, num_classes=C)`.

    Raises:
        UnsupportedAdapterError: (`not_mergeable`) the kind has a non-linearity, or this network has
            no place for a part of it.
        InvalidError: the backbone was cast to another number format.
    """
    backbone = model.backbone
    if backbone.dtype != torch.float32:
        raise InvalidError(
            f"{backbone.name} is here in {backbone.dtype}; load it in fp32 to merge adapters into "
            "its weights"
        )
    method = ADAPTER_METHODS[model.spec.kind]
    network = copy.deepcopy(backbone.module).cpu()
    adapters = copy.deepcopy(model.adapters).cpu()
    with torch.no_grad():
        method.merge(network, adapters, model.spec)
        for classifier in _add_classifiers(network, model):
            classifier.weight.copy_(model.head.weight)
            classifier.bias.copy_(model.head.bias)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def merge_bundle(bundle: Bundle, backbone: LoadedBackbone) -> dict[str, Tensor]:
    """Return what `build_merged` does, for a stored model.

    Args:
        bundle: the stored model.
        backbone: its network in fp32; as there, nothing else may run it meanwhile.

    Raises:
        WeightsMismatchError: the backbone is not the one that the model was trained on.
        AdapterStateError: the stored tensors do not fit the network.
        UnsupportedAdapterError: as in `build_merged`.
    """
    return build_merged(restore_model(bundle, backbone))


def check_mergeable(bundle: Bundle) -> None:
    """Refuse a kind that can never be merged, before any weights are loaded.

    Raises:
        UnsupportedAdapterError: (`not_mergeable`) naming the kinds that can.
    """
    if not ADAPTERS[bundle.spec.kind].mergeable:
        possible = ", ".join(kind.value for kind, facts in ADAPTERS.items() if facts.mergeable)
        reason = f"it is no linear change of the weights; these are: {possible}"
        raise not_mergeable(bundle.spec.kind, reason)


def encode_merged(
    state: Mapping[str, Tensor], model: AdaptedModel | Bundle, classes: Sequence[str]
) -> bytes:
    """Return a merged state as the bytes of a safetensors file, the same ones every time.

    Its one metadata entry, `timm`, says what to build, how to prepare an image (in timm's words:
    `squash` resizes directly), what the classes are called and whose licence holds.

    Args:
        state: of `build_merged` or `merge_bundle`.
        model: what it was made of.
        classes: names, in the order of the logits.

    Raises:
        InvalidError: there are not as many class names as logits.
    """
    logits = model.head.out_features if isinstance(model, AdaptedModel) else len(model.classes)
    if len(classes) != logits:
        raise InvalidError(f"{len(classes)} class names do not fit {logits} logits")
    # One entry: safetensors writes several in an order that changes from process to process.
    text = json.dumps(_describe(model, classes), sort_keys=True, ensure_ascii=False)
    return safetensors.torch.save(dict(state), metadata={METADATA_KEY: text})


def save_merged(path: Path, model: AdaptedModel, classes: Sequence[str]) -> None:
    """Write `model` as a plain timm checkpoint; raises what its two steps do."""
    _write(path, encode_merged(build_merged(model), model, classes))


def save_merged_bundle(path: Path, bundle: Bundle, backbone: LoadedBackbone) -> None:
    """Write a stored model as a plain timm checkpoint; raises what its two steps do."""
    _write(path, encode_merged(merge_bundle(bundle, backbone), bundle, bundle.classes))


def _add_classifiers(network: nn.Module, model: AdaptedModel) -> list[nn.Linear]:
    """Give the network a classifier under its own name for it, and return it.

    A distilled DeiT has two, whose logits it averages; both get the same weights.
    """
    classes = model.head.out_features
    timm_network: Any = network
    timm_network.reset_classifier(classes)
    found = timm_network.get_classifier()
    classifiers = list(found) if isinstance(found, tuple) else [found]
    for classifier in classifiers:
        if not isinstance(classifier, nn.Linear) or classifier.weight.shape != (
            classes,
            model.backbone.num_features,
        ):
            family = type(network).__name__
            raise not_mergeable(model.spec.kind, f"the classifier of {family} is no linear layer")
    return classifiers


def _describe(model: AdaptedModel | Bundle, classes: Sequence[str]) -> dict[str, Any]:
    backbone = model.backbone
    facts = find_backbone(backbone.name)
    return {
        "architecture": backbone.name,
        "num_classes": len(classes),
        "label_names": list(classes),
        "pretrained_cfg": {
            "input_size": [3, backbone.image_px, backbone.image_px],
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "license": facts.license if facts else None,
        },
        "merged_from": {
            "adapter": model.spec.kind.value,
            "weights_sha256": backbone.weights_sha256,
        },
    }


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file:
        file.write(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Merge the bundle in a folder; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m core.ml.export.merged",
        description="Write a fine-tuned model as one plain timm checkpoint.",
    )
    parser.add_argument("adapter_dir", type=Path, help="has adapter.safetensors and config.json")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--weights-dir", type=Path, help="has NAME.safetensors of the backbone")
    options = parser.parse_args(arguments)
    try:
        bundle = load_bundle(options.adapter_dir)
        check_mergeable(bundle)
        backbone = load_backbone(bundle.backbone.name, weights_dir=options.weights_dir)
        save_merged_bundle(options.out, bundle, backbone)
    except AppError as error:
        logger.error("%s", error.message)  # noqa: TRY400 - a sentence, not a traceback
        return 1
    logger.info(
        "wrote %s; load it into timm.create_model(%r, num_classes=%d)",
        options.out,
        backbone.name,
        len(bundle.classes),
    )
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
