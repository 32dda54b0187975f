"""Decide the number format of a frozen backbone and put it on its device."""

import torch
from torch import nn

from core.catalog.methods import Precision
from core.ml.backbones.packed_linear import pack_linears

_DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16}


def dtype_of(precision: Precision) -> torch.dtype:
    """Return the torch dtype of frozen weights and activations."""
    return _DTYPES[precision]


def resolve_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means on this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def resolve_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that `auto`, `fp32` or `bf16` means on `device`.

    `auto` is bf16 only where the hardware multiplies it: elsewhere torch emulates it, slower than
    fp32.
    """
    if name != "auto":
        return Precision(name)
    return Precision.BF16 if _has_bf16(device) else Precision.FP32


def place_backbone(
    module: nn.Module, *, device: torch.device, precision: Precision, for_training: bool = True
) -> None:
    """Move and cast a frozen network in place.

    In bf16 on a CPU the attention layers compute plain softmax(qk)v for training: torch's fused CPU
    kernel is made for inference, and training through it costs about 1.5 times the whole step.
    Without gradients it gains where a CPU has tiles (AMX), and takes 1.5 times as long as plain
    products where it has not. Elsewhere the fused kernel stays. On a CPU the weights of a network
    that is not trained are laid out for multiplying, see `pack_linears`.

    Args:
        module: the network.
        device: where it will be.
        precision: of its weights and activations.
        for_training: whether gradients will flow through it.
    """
    module.to(device=device, dtype=dtype_of(precision))
    if device.type != "cpu":
        return
    if precision is Precision.BF16 and (for_training or _multiplies_without_tiles()):
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010 - nn.Module types every attribute
    if not for_training:
        pack_linears(module)


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return any(map(_has_instructions, ("avx512_bf16", "amx_bf16", "bf16")))


def _multiplies_without_tiles() -> bool:
    return _has_instructions("avx512_bf16") and not _has_instructions("amx_bf16")


def _has_instructions(name: str) -> bool:
    """Say whether this CPU has instructions, by their name in `torch.cpu.get_capabilities()`."""
    # The public query came after the oldest torch that is allowed here; the private ones are older
    # than both.
    query = getattr(torch.cpu, "get_capabilities", None)
    if query is not None:
        return bool(query().get(name, False))
    older = {"amx_bf16": "_is_amx_tile_supported"}.get(name, f"_is_{name}_supported")
    probe = getattr(torch.cpu, older, None)
    return bool(probe()) if probe is not None else False
