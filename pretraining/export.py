"""Write a run's backbone as float16 safetensors, where the registration looks for it."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from core.ml.backbones.starter import weights_path
from pretraining.checkpoint import backbone_weights
from pretraining.model import NAMES


def export(role: str, checkpoint: Path, out: Path, *, averaged: bool) -> None:
    """Write `out` from a training checkpoint; averaged selects the moving average."""
    weights = backbone_weights(checkpoint, averaged=averaged)
    halved = {name: tensor.to(torch.float16).contiguous() for name, tensor in weights.items()}
    partial = out.with_suffix(".partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(halved, partial, metadata={"format": "pt", "model": NAMES[role]})
    partial.chmod(0o644)  # safetensors writes files that only their owner can read
    partial.replace(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["student", "teacher"], required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="default: the package's weights folder")
    parser.add_argument("--last", action="store_true", help="last weights instead of their average")
    options = parser.parse_args()
    out = options.out or weights_path(NAMES[options.model])
    export(options.model, options.checkpoint, out, averaged=not options.last)


if __name__ == "__main__":
    main()
