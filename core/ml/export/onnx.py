"""A model as one ONNX file: backbone, adapters and head, for any runtime that reads the format.

    python -m core.ml.export.onnx ADAPTER_DIR OUT [--weights-dir DIR]

Input `pixel_values`, float32 (batch, 3, px, px), prepared as the metadata says; output `logits`,
float32 (batch, classes). The batch is free. No file leaves here before ONNX Runtime has answered as
torch does. The same model and the same torch write the same bytes.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from core.errors import AppError, InvalidError, TooLargeError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.inject import attached
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.load import load_backbone
from core.ml.data.atomic import replace_file
from core.ml.export.bundle import Bundle, load_bundle, restore_model

logger = logging.getLogger(__name__)

INPUT_NAME: Final = "pixel_values"
OUTPUT_NAME: Final = "logits"
OPSET: Final = 18
#: Largest difference of a logit between torch and ONNX Runtime that is handed out.
TOLERANCE: Final = 1e-4

#: Protobuf has no messages over 2 GiB; some room for the graph itself.
_MAX_WEIGHT_BYTES = 2**31 - 2**26
_GOLDEN_BATCHES = (1, 3)


class OnnxMismatchError(AppError):
    """The exported file does not answer as the model does: a bug of an exporter or a runtime."""

    code = "onnx_mismatch"


@dataclass(frozen=True)
class OnnxFile:
    """An exported and checked model.

    Attributes:
        data: the bytes of the file.
        max_delta: largest difference of a logit between torch and ONNX Runtime on the golden
            inputs.
    """

    data: bytes
    max_delta: float


class _Whole(nn.Module):
    """The adapted network with the backbone as a submodule, so that its weights keep their names.

    It runs the plain forward: the product of `core.ml.backbones.frozen_linear` and the shorter last
    block of `core.ml.adapters.last_block` are for speed in torch alone.
    """

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.backbone = model.backbone.module
        self.adapters = model.adapters
        self.head = model.head
        self._model = [model]  # in a list, or it would be a submodule

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return fp32 logits."""
        model = self._model[0]
        method = ADAPTER_METHODS[model.spec.kind]
        with attached(model.backbone, model.adapters, model.spec, keep=None, draws=None):
            overrides = method.overrides(self.backbone, model.adapters)
            if overrides:
                features = functional_call(self.backbone, dict(overrides), (pixel_values,))
            else:
                features = self.backbone(pixel_values)
        return cast(Tensor, self.head(features))


def build_onnx(model: AdaptedModel, metadata: Mapping[str, str] | None = None) -> OnnxFile:
    """Export an adapted model and check the file against it.

    Nothing else may run the backbone meanwhile: adapters hang on it while it is traced.

    Args:
        model: its backbone in fp32, on the CPU.
        metadata: entries of the file, beside those about the check.

    Raises:
        InvalidError: the backbone was cast, or lies elsewhere.
        TooLargeError: (`model_too_large_for_onnx`) the weights are beyond the format's 2 GiB.
        OnnxMismatchError: the file answers differently.
    """
    backbone = model.backbone
    if backbone.dtype != torch.float32 or backbone.device.type != "cpu":
        raise InvalidError(
            f"{backbone.name} is here in {backbone.dtype} on {backbone.device}; load it in fp32 on "
            "the CPU to export it"
        )
    whole = _Whole(model).eval()
    weight_bytes = sum(tensor.nbytes for tensor in whole.state_dict().values())
    if weight_bytes > _MAX_WEIGHT_BYTES:
        raise TooLargeError(
            f"{backbone.name} has {weight_bytes} bytes of weights, and a single ONNX file holds "
            f"{_MAX_WEIGHT_BYTES}; export the adapter, or merge it, instead",
            code="model_too_large_for_onnx",
        )
    graph = _trace(whole, backbone.image_px)
    max_delta = _compare(graph.SerializeToString(), model)
    if not max_delta <= TOLERANCE:
        raise OnnxMismatchError(
            f"the exported file's logits differ by up to {max_delta:.1e}, more than {TOLERANCE}"
        )
    entries = {
        **(metadata or {}),
        "max_abs_delta": f"{max_delta:.3e}",
        "checked_with": f"onnxruntime {onnxruntime.__version__}",
        "exported_with": f"torch {torch.__version__}",
    }
    onnx.helper.set_model_props(graph, dict(sorted(entries.items())))
    return OnnxFile(graph.SerializeToString(deterministic=True), max_delta)


def export_bundle(bundle: Bundle, *, weights_dir: Path | None = None) -> OnnxFile:
    """Export a stored model, on a copy of its backbone that is loaded for it.

    Raises:
        WeightsMismatchError: the backbone here is not the one that the model was trained on.
        WeightsUnavailableError: the backbone is not here.
        UnsupportedAdapterError, AdapterStateError, TooLargeError, OnnxMismatchError: as in
            `restore_model` and `build_onnx`.
    """
    backbone = load_backbone(bundle.backbone.name, weights_dir=weights_dir)
    return build_onnx(restore_model(bundle, backbone), describe_bundle(bundle))


def describe_bundle(bundle: Bundle) -> dict[str, str]:
    """Return what the file says of a stored model; values that are not text are JSON."""
    backbone = bundle.backbone
    preprocessing = {
        **bundle.config["preprocessing"],
        "color": "RGB",
        "divide_by": 255,
        "layout": "NCHW",
    }
    return {
        "classes": json.dumps(list(bundle.classes), ensure_ascii=False),
        "preprocessing": json.dumps(preprocessing, sort_keys=True),
        "backbone": backbone.name,
        "backbone_weights_sha256": backbone.weights_sha256,
        "adapter_kind": bundle.spec.kind.value,
        "adapter_sha256": bundle.sha256,
    }


def _trace(whole: nn.Module, image_px: int) -> onnx.ModelProto:
    example = torch.zeros(2, 3, image_px, image_px)
    said = io.StringIO()  # the exporter prints, whatever it is told
    with torch.no_grad(), contextlib.redirect_stdout(said):
        program: Any = torch.onnx.export(
            whole,
            (example,),
            dynamo=True,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("batch")}},
            opset_version=OPSET,
            verbose=False,
        )
    graph: onnx.ModelProto = program.model_proto
    _strip(graph)
    return graph


def _strip(graph: onnx.ModelProto) -> None:
    """Remove what the exporter tells of where it ran: stack traces with paths, node by node."""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    functions = [function.node for function in graph.functions]
    for function in graph.functions:
        del function.metadata_props[:]
    for node in (node for nodes in (graph.graph.node, *functions) for node in nodes):
        del node.metadata_props[:]
        node.doc_string = ""
    values = (graph.graph.value_info, graph.graph.input, graph.graph.output)
    for value in (value for part in (*values, graph.graph.initializer) for value in part):
        del value.metadata_props[:]
        value.doc_string = ""


def _compare(data: bytes, model: AdaptedModel) -> float:
    """Return the largest difference of a logit on golden inputs, NaN if there is one anywhere."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    deltas = []
    for batch in _GOLDEN_BATCHES:
        images = _draw_images(batch, model.backbone.image_px)
        with torch.no_grad():
            expected = model(torch.from_numpy(images)).numpy()
        (given,) = session.run([OUTPUT_NAME], {INPUT_NAME: images})
        deltas.append(np.abs(given - expected).max())
    return float(np.max(deltas))


def _draw_images(batch: int, image_px: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, 3, image_px, image_px), dtype=np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export the bundle in a folder; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m core.ml.export.onnx",
        description="Write a fine-tuned model as one ONNX file.",
    )
    parser.add_argument("adapter_dir", type=Path, help="has adapter.safetensors and config.json")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--weights-dir", type=Path, help="has NAME.safetensors of the backbone")
    options = parser.parse_args(arguments)
    try:
        exported = export_bundle(load_bundle(options.adapter_dir), weights_dir=options.weights_dir)
    except AppError as error:
        logger.error("%s", error.message)  # noqa: TRY400 - a sentence, not a traceback
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(options.out) as file:
        file.write(exported.data)
    logger.info(
        "wrote %s, %d bytes; ONNX Runtime's logits differ by at most %.1e",
        options.out,
        len(exported.data),
        exported.max_delta,
    )
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    sys.exit(main())
