"""Load a frozen timm network by name: from this package, a local folder or the hub."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, get_session, try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn

from core.catalog.methods import Precision
from core.errors import InvalidError, UnavailableError
from core.ml.backbones.blocks import ResidualBlock, find_blocks
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.precision import place_backbone

_BUNDLED_WEIGHTS = Path(__file__).parent / "starter_weights"
_HUB_TIMEOUT_S = 10.0


class UnknownBackboneError(InvalidError):
    """timm has no network of that name."""

    code = "unknown_backbone"


class WeightsUnavailableError(UnavailableError):
    """The weights are neither here nor to be fetched."""

    code = "weights_unavailable"


class WeightsMismatchError(InvalidError):
    """A weights file does not hold what the network of its name needs."""

    code = "weights_mismatch"


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """A frozen network without its classifier.

    It maps (batch, 3, image_px, image_px) to (batch, num_features).

    Attributes:
        module: the network, in eval mode, without gradients. Adapted models share it and never
            change it.
        name: exact timm name.
        weights_sha256: name of the weights as loaded, see `compute_tensors_sha256`.
        image_px: side of the square input.
        mean: per-channel mean that the input is normalised with, of values in 0..1.
        std: per-channel standard deviation, likewise.
        interpolation: how the network's training resized images.
        num_features: width F of the pooled features.
        blocks: where adapters attach.
    """

    module: nn.Module
    name: str
    weights_sha256: str
    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    num_features: int
    blocks: tuple[ResidualBlock, ...]

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Width of the residual stream in every block."""
        return tuple(block.width for block in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights and activations."""
        return next(self.module.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.module.parameters()).device

    def place(
        self, *, device: torch.device, precision: Precision, for_training: bool = True
    ) -> None:
        """Move and cast the weights in place; `weights_sha256` goes on naming what was loaded.

        Args:
            device: where they will be.
            precision: of weights and activations.
            for_training: whether gradients will flow through the network.
        """
        place_backbone(self.module, device=device, precision=precision, for_training=for_training)


def load_backbone(
    name: str, *, weights_dir: Path | None = None, pretrained: bool = True, seed: int = 0
) -> LoadedBackbone:
    """Load the network `name` in fp32 on the CPU.

    Args:
        name: exact timm name, for example `vit_base_patch16_224.augreg_in21k`.
        weights_dir: folder searched for `NAME.safetensors` before the hub is asked.
        pretrained: False gives random weights, for tests and benchmarks.
        seed: of the random weights.

    Raises:
        UnknownBackboneError: timm has no such network.
        UnsupportedBackboneError: the network has no blocks that adapters fit in.
        WeightsMismatchError: the local file lacks tensors or has other shapes.
        WeightsUnavailableError: no local file, and the hub does not answer.
    """
    register_bundled()
    if not timm.is_model(name):
        raise UnknownBackboneError(f"timm has no network called {name!r}")
    if not pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return wrap_backbone(_create(name), name)
    path = _find_weights(name, weights_dir)
    if path is not None:
        module = _create(name)
        _load_file(module, path)
        return wrap_backbone(module, name)
    return wrap_backbone(_load_from_hub(name, weights_dir), name)


def wrap_backbone(module: nn.Module, name: str) -> LoadedBackbone:
    """Freeze a timm network that has no classifier (`num_classes=0`) and read its facts.

    Raises:
        UnsupportedBackboneError: it has no blocks that adapters fit in.
        InvalidError: its input is not a square colour image.
    """
    module.eval()
    module.requires_grad_(requires_grad=False)
    blocks = find_blocks(module)
    config: dict[str, Any] = dict(getattr(module, "pretrained_cfg", None) or {})
    channels, height, width = config.get("input_size", (3, 224, 224))
    if channels != 3 or height != width:  # noqa: PLR2004 - colour
        raise InvalidError(f"{name} reads {channels}x{height}x{width}, not a square colour image")
    half = (0.5, 0.5, 0.5)
    return LoadedBackbone(
        module=module,
        name=name,
        weights_sha256=compute_tensors_sha256(module.state_dict()),
        image_px=int(height),
        mean=_triple(config.get("mean", half)),
        std=_triple(config.get("std", half)),
        interpolation=str(config.get("interpolation", "bicubic")),
        num_features=read_num_features(module),
        blocks=blocks,
    )


def read_num_features(module: nn.Module) -> int:
    """Return the width of the pooled features that a timm network gives its classifier."""
    width = module.head_hidden_size
    assert isinstance(width, int), "timm keeps a plain number here"
    return width


def register_bundled() -> None:
    """Make the networks of this package known to timm, like any other."""
    import_module("core.ml.backbones.starter")


def _create(name: str) -> nn.Module:
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0)
    return module


def _find_weights(name: str, weights_dir: Path | None) -> Path | None:
    # The operator's folder first: a file that somebody put there is there on purpose.
    folders = [_BUNDLED_WEIGHTS] if weights_dir is None else [weights_dir, _BUNDLED_WEIGHTS]
    for folder in folders:
        path = folder / f"{name}.safetensors"
        if path.is_file():
            return path
    return None


def _load_file(module: nn.Module, path: Path) -> None:
    """Load weights in timm's or the family's published layout, without classifier tensors."""
    # Families publish under their own names; timm keeps each family's translation beside its class.
    translate = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    try:
        outcome = timm.models.load_checkpoint(module, str(path), strict=False, filter_fn=translate)
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise WeightsMismatchError(f"{path.name} does not fit the network: {error}") from error
    missing = list(outcome.missing_keys)
    if missing:
        raise WeightsMismatchError(
            f"{path.name} lacks {len(missing)} tensors of the network, first {missing[0]}"
        )


def _load_from_hub(name: str, weights_dir: Path | None) -> nn.Module:
    folder = weights_dir if weights_dir is not None else "a folder named by IDAT_WEIGHTS_DIR"
    remedy = (
        f"put {name}.safetensors into {folder}, or set IDAT_WEIGHTS_DIR to a folder that has it"
    )
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise WeightsUnavailableError(f"timm publishes no weights for {name}; {remedy}")
    # timm retries for most of a minute before it reports that the hub is away; ask once, unless it
    # is cached.
    single = (constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME)
    files = (config.hf_hub_filename,) if config.hf_hub_filename else single
    cached = any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files)
    try:
        if not cached:
            get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
        module: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except (
        Exception
    ) as error:  # the hub client, its transport and timm each raise families of their own
        raise WeightsUnavailableError(
            f"the weights of {name} could not be fetched from the hub "
            f"({type(error).__name__}); {remedy}"
        ) from error
    return module


def _triple(values: Iterable[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
