"""A name for a set of tensors that depends on their values, not on the file they came from."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def compute_tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 (hex) of named tensors in canonical form.

    Canonical form: names in ascending order; for each a JSON line `[name, dtype, shape]` and then
    the values, row-major and little-endian. Floating-point values of 32 bits and fewer are taken as
    float32, which holds float16 and bfloat16 exactly, so a file that stores halves and one that
    stores the same values as floats have the same name.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            tensor = tensor.float()
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode() + b"\n")
        array = tensor.contiguous().numpy()
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()
