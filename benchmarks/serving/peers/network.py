"""A timm ViT with adapters as a user of timm writes them, for the systems that are compared with.

Three ways to answer a batch of requests for different models, of which each peer uses its best:

* `grouping`: one forward for each model in the batch, all adapters in memory.
* `loop`: one forward for the batch; each adapter layer loops over the models in it, as PEFT does
  with `adapter_names`.
* `swap`: `grouping` with the 25 adapters used last in memory and the others read from disk.
"""

import io
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from core.ml.data.preprocess import preprocess

SWAP_MODELS = 25
STRATEGIES = ("grouping", "loop", "swap")

State = dict[str, Tensor]


def decode_with_pillow(data: bytes, image_px: int) -> npt.NDArray[np.uint8]:
    """Return the pixels of an encoded image, as most servers make them."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.array(image.resize((image_px, image_px), Image.Resampling.BICUBIC))


DECODERS: dict[str, Callable[[bytes, int], npt.NDArray[np.uint8]]] = {
    "pillow": decode_with_pillow,
    "service": preprocess,
}


class AdaptedVit:
    """One timm ViT, many sequential adapters and heads."""

    def __init__(
        self,
        network: str,
        weights_dir: Path,
        bundle: Callable[[int], Path],
        count: int,
        *,
        strategy: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Load the network and, unless they are swapped, all adapters."""
        module: Any = timm.create_model(network, num_classes=0)  # timm declares no parts
        self._module = module
        weights = safetensors.torch.load_file(weights_dir / f"{network}.safetensors")
        module.load_state_dict(weights)
        module.eval().requires_grad_(requires_grad=False).to(device, dtype)
        config: dict[str, Any] = module.pretrained_cfg
        self.image_px = int(config["input_size"][-1])
        self._mean = torch.tensor(config["mean"], device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(config["std"], device=device).view(1, 3, 1, 1) * 255
        self._dtype, self._device = dtype, device
        self._bundle = bundle
        self._strategy = strategy
        self._states: OrderedDict[int, State] = OrderedDict()
        self._turn: list[tuple[State, Tensor | slice]] = []
        for number, block in enumerate(module.blocks):
            block.register_forward_hook(self._make_hook(number))
        if strategy != "swap":
            for index in range(count):
                self._states[index] = self._read(index)

    def classify(self, models: Sequence[int], pixels: npt.NDArray[np.uint8]) -> Tensor:
        """Return probabilities (images, classes) of uint8 (images, px, px, 3)."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float()
        images = ((images - self._mean) / self._std).to(self._dtype)
        with torch.inference_mode():
            if self._strategy == "loop":
                return self._forward_mixed(models, images).cpu()
            distinct = sorted(set(models))
            if len(distinct) == 1:
                return self._forward_one(distinct[0], images).cpu()
            wanted = torch.tensor(models)
            parts: list[Tensor] = [torch.empty(0)] * len(models)
            for model in distinct:
                rows = (wanted == model).nonzero().flatten()
                answers = self._forward_one(model, images[rows.to(self._device)]).cpu()
                for row, answer in zip(rows.tolist(), answers, strict=True):
                    parts[row] = answer
            return torch.stack(parts)

    def _forward_one(self, model: int, images: Tensor) -> Tensor:
        state = self._get(model)
        self._turn = [(state, slice(None))]
        return _head(state, self._module(images))

    def _forward_mixed(self, models: Sequence[int], images: Tensor) -> Tensor:
        wanted = torch.tensor(models, device=self._device)
        distinct = sorted(set(models))
        self._turn = [
            (self._get(model), (wanted == model).nonzero().flatten()) for model in distinct
        ]
        features = self._module(images)
        parts = [(rows, _head(state, features[rows])) for state, rows in self._turn]
        answers = torch.empty(len(models), parts[0][1].shape[1], device=self._device)
        for rows, answer in parts:
            answers[rows] = answer
        return answers

    def _make_hook(self, number: int) -> Callable[..., Tensor]:
        def adapt(_module: nn.Module, _inputs: object, tokens: Tensor) -> Tensor:
            if len(self._turn) == 1:
                return _adapt(self._turn[0][0], number, tokens)
            changed = torch.empty_like(tokens)
            for state, rows in self._turn:
                changed[rows] = _adapt(state, number, tokens[rows])
            return changed

        return adapt

    def _get(self, model: int) -> State:
        state = self._states.get(model)
        if state is None:
            state = self._read(model)
            self._states[model] = state
            while len(self._states) > SWAP_MODELS:
                self._states.popitem(last=False)
        elif self._strategy == "swap":
            self._states.move_to_end(model)
        return state

    def _read(self, model: int) -> State:
        state = safetensors.torch.load_file(self._bundle(model) / "adapter.safetensors")
        return {
            name: tensor.to(self._device, None if name.startswith("head") else self._dtype)
            for name, tensor in state.items()
        }


def _adapt(state: State, number: int, tokens: Tensor) -> Tensor:
    prefix = f"adapters.{number}"
    hidden = functional.linear(tokens, state[f"{prefix}.down.weight"], state[f"{prefix}.down.bias"])
    hidden = functional.gelu(hidden)
    return tokens + functional.linear(
        hidden, state[f"{prefix}.up.weight"], state[f"{prefix}.up.bias"]
    )


def _head(state: State, features: Tensor) -> Tensor:
    logits = functional.linear(features.float(), state["head.weight"], state["head.bias"])
    return logits.softmax(dim=1)


def top_five(probabilities: Tensor) -> list[dict[str, float | int]]:
    """Return one image's five likeliest classes, best first."""
    scores, classes = probabilities.topk(min(5, len(probabilities)))
    return [
        {"label": label, "score": score}
        for label, score in zip(classes.tolist(), scores.tolist(), strict=True)
    ]
