"""Check the estimate of a job's memory against what a training step keeps for its backward.

    python -m benchmarks.training_memory
    python -m benchmarks.training_memory --networks vit_tiny_patch16_224.augreg_in21k --kinds lora

The bytes that autograd saves are counted by its own hooks, each storage once, without weights. They
are the same on every device, but for the attention: on a GPU it keeps less. Weights are random.
"""

import argparse
from collections.abc import Sequence

import torch

from core.catalog.backbones import get_backbone
from core.catalog.memory import estimate_activation_bytes
from core.catalog.methods import AdapterKind, MethodType, Precision
from core.ml.adapters.base import UnsupportedAdapterError
from core.ml.backbones.load import load_backbone
from core.ml.training.loop import build_trainee_model
from core.ml.training.plan import build_plan

NETWORKS = (
    "vit_starter_student_patch8_64",
    "vit_starter_teacher_patch8_64",
    "vit_tiny_patch16_224.augreg_in21k",
    "vit_small_patch16_224.augreg_in21k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "eva02_tiny_patch14_224.mim_in22k",
    "swin_tiny_patch4_window7_224.ms_in22k",
    "convnext_atto.d2_in1k",
    "hiera_tiny_224.mae",
    "pvt_v2_b0.in1k",
)
KINDS = (AdapterKind.SEQUENTIAL, AdapterKind.LORA, AdapterKind.FULL)
HIDDEN_DIM = 8
FP32_BYTES = 4


def measure_saved_bytes(name: str, kind: AdapterKind, hidden_dim: int) -> int:
    """Return the bytes that an image more makes a forward keep, in fp32."""
    backbone = load_backbone(name, pretrained="starter" in name)
    plan = build_plan(
        method=MethodType.ADAPTER,
        num_classes=10,
        kind=kind,
        hidden_dim=hidden_dim,
        learning_rate=1e-3,
        weight_decay=1e-2,
        precision=Precision.FP32,
    )
    model = build_trainee_model(plan, "student", backbone)
    weights = {
        tensor.untyped_storage().data_ptr()
        for module in (model, backbone.module)
        for tensor in (*module.parameters(), *module.buffers())
    }

    def count(images: int) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        shape = (images, 3, backbone.image_px, backbone.image_px)
        batch = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            logits = model(batch)
            loss = logits.square().mean()
        del loss, logits
        return sum(kept.values())

    return count(2) - count(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the estimate, the measurement and their ratio for every network and kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--kinds", nargs="+", type=AdapterKind, default=KINDS)
    options = parser.parse_args(arguments)
    print("saved for one image, MB (fp32)")
    print(f"{'network':45} {'kind':12} {'estimate':>9} {'measured':>9} {'ratio':>6}")
    for name in options.networks:
        for kind in options.kinds:
            estimate = estimate_activation_bytes(get_backbone(name), kind, number_bytes=FP32_BYTES)
            try:
                measured = measure_saved_bytes(name, kind, HIDDEN_DIM)
            except UnsupportedAdapterError:
                continue
            print(
                f"{name:45} {kind.value:12} {estimate / 1e6:9.2f} {measured / 1e6:9.2f} "
                f"{estimate / measured:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
