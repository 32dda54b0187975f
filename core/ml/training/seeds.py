"""Every random draw of a job, addressed by its purpose, not by what was drawn before it."""

import hashlib

import torch

_SEED_BITS = 63


def derive_seed(seed: int, purpose: str, *, epoch: int = 0, step: int = 0) -> int:
    """Return the seed of one draw, as a hash of its address.

    A resumed run asks for the same address and gets the same numbers, so no generator state is ever
    saved.

    Args:
        seed: the job's seed.
        purpose: what is drawn, for example `order` or `drop_path/student`.
        epoch: from 0.
        step: within the run, from 0.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def build_generator(seed: int, purpose: str, *, epoch: int = 0, step: int = 0) -> torch.Generator:
    """Return a generator at `derive_seed(...)`, on the CPU so that every device draws the same."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, epoch=epoch, step=step))
