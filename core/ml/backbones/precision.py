"""Decide the number format of a frozen backbone and put it on its device."""

import torch
from torch import nn

from core.catalog.methods import Precision

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

    In bf16 on a CPU the attention layers are told to use plain softmax(qk)v for training: torch's
    fused CPU kernel is made for inference, and training through it in bf16 costs about 1.5 times
    the whole step. Elsewhere the fused kernel stays.

    Args:
        module: the network.
        device: where it will be.
        precision: of its weights and activations.
        for_training: whether gradients will flow through it.
    """
    module.to(device=device, dtype=dtype_of(precision))
    if for_training and device.type == "cpu" and precision is Precision.BF16:
        for part in module.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010 - nn.Module types every attribute


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # The public query came after the oldest torch that is allowed here; the private ones are older
    # than both.
    query = getattr(torch.cpu, "get_capabilities", None)
    if query is not None:
        capabilities = query()
        return any(capabilities.get(key, False) for key in ("avx512_bf16", "amx_bf16", "bf16"))
    probes = (
        getattr(torch.cpu, f"_is_{key}_supported", None) for key in ("avx512_bf16", "amx_tile")
    )
    return any(probe() for probe in probes if probe is not None)
