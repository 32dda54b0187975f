"""Bitwise repeatable arithmetic on a GPU, for a process that asks for it."""

import torch


def make_deterministic(device: torch.device) -> None:
    """Make torch choose repeatable kernels, for this process and for good; a CPU needs nothing.

    cuBLAS repeats itself only if the process was started with `CUBLAS_WORKSPACE_CONFIG=:4096:8`;
    whoever starts the process sets that.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.benchmark = False
    # Its backward adds in any order. What remains is flash attention (bf16) and plain (fp32).
    torch.backends.cuda.enable_mem_efficient_sdp(enabled=False)
    torch.use_deterministic_algorithms(mode=True)
