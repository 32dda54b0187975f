"""Compare one training step with the released code's, interleaved in one run.

    python benchmarks/train_step.py --pair starter
    python benchmarks/train_step.py --pair vit-s16-b16 --batch-size 8 --rounds 5 --out result.json

Gradients are compared before anything is timed. Times are CPU time of the process, which other work
on the machine does not lengthen, and wall time; on a GPU only wall time says anything. Ratios are
taken within a round, and the median, least and greatest over the rounds are printed.
"""

import argparse
import io
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import describe_machine
from benchmarks.released_step import (
    JpegDataset,
    backward_twice,
    build_optimizer,
    cycle_batches,
)
from core.catalog.methods import Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.precision import resolve_device
from core.ml.losses.distillation import Distillation
from core.ml.losses.registry import build_logit_loss
from core.ml.training.optim import build_optimizer as build_shared_optimizer
from core.ml.training.optim import set_learning_rate
from core.ml.training.plan import TrainPlan, build_plan
from core.ml.training.resident import ResidentSplit, build_split
from core.ml.training.step import Trainee, TrainStep

PAIRS = {
    "starter": ("vit_starter_student_patch8_64", "vit_starter_teacher_patch8_64"),
    "vit-s16-b16": ("vit_base_patch16_224", "vit_small_patch16_224"),
}
PHOTO_SIZE = (500, 375)
NUM_CLASSES = 10
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 5e-5


@dataclass(eq=False)
class Workload:
    """The same photographs for both sides."""

    files: list[bytes]
    labels: NDArray[np.int64]
    split: ResidentSplit
    image_px: int


def main() -> None:
    """Parse the options, run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=sorted(PAIRS), default="starter")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="steps of a variant in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--hidden-dim", type=int, default=8)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--weights-dir", type=Path, help="folder with NAME.safetensors")
    parser.add_argument("--out", type=Path, help="JSON file that the result is added to")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = run(options)
    print_result(result)
    if options.out:
        add_result(options.out, result)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare gradients, time every variant and return everything as JSON values."""
    device = resolve_device(options.device)
    plan = build_plan(
        num_classes=NUM_CLASSES,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        precision=Precision.FP32,
        hidden_dim=options.hidden_dim,
        batch_size=options.batch_size,
    )
    weights, wide = load_pair(options, device, Precision.FP32)
    _, narrow = load_pair(options, device, Precision.BF16)
    work = build_workload(options.images, wide[0].image_px, device)
    gradients = {
        "ours fp32": compare_gradients(plan, work, wide, wide),
        "ours bf16": compare_gradients(plan, work, wide, narrow),
    }
    variants = {
        "released fp32": build_released(plan, work, wide, autocast=False, plain_attention=False),
        "released bf16 autocast": build_released(
            plan, work, wide, autocast=True, plain_attention=False
        ),
        "released bf16 autocast, plain attention": build_released(
            plan, work, wide, autocast=True, plain_attention=True
        ),
        "ours fp32": build_ours(plan, work, wide),
        "ours bf16": build_ours(plan, work, narrow),
    }
    return {
        "pair": options.pair,
        "weights": weights,
        "batch_size": options.batch_size,
        "hidden_dim": options.hidden_dim,
        "rounds": options.rounds,
        "machine": describe_run(device),
        "gradients": gradients,
        "times": time_variants(variants, options.rounds, options.steps, device),
    }


def load_pair(
    options: argparse.Namespace, device: torch.device, precision: Precision
) -> tuple[str, tuple[LoadedBackbone, LoadedBackbone]]:
    """Return how the weights came about, and student and teacher."""
    names = PAIRS[options.pair]
    has_weights = options.pair == "starter" or options.weights_dir is not None
    loaded = [
        load_backbone(name, weights_dir=options.weights_dir, pretrained=has_weights)
        for name in names
    ]
    for backbone in loaded:
        backbone.place(device=device, precision=precision)
    return "pretrained" if has_weights else "random", (loaded[0], loaded[1])


def build_workload(images: int, image_px: int, device: torch.device) -> Workload:
    """Make smooth random photographs, encode them, and decode them once for our side."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize(PHOTO_SIZE, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    labels = rng.integers(0, NUM_CLASSES, images)
    dataset = JpegDataset(files, labels, image_px)
    pixels = torch.stack([dataset[index][0] for index in range(images)])
    cached = ((pixels * 0.5 + 0.5) * 255.0).round().to(torch.uint8).permute(0, 2, 3, 1)
    array = np.ascontiguousarray(cached.numpy())
    split = build_split(array, labels, device=device, teacher_images=array)
    return Workload(files, labels, split, image_px)


def build_models(
    plan: TrainPlan, pair: tuple[LoadedBackbone, LoadedBackbone]
) -> tuple[AdaptedModel, AdaptedModel]:
    """Return student and teacher with the same initial weights in every variant."""
    spec: AdapterSpec = plan.adapter
    student, teacher = (
        AdaptedModel(backbone, spec, NUM_CLASSES, seed=seed) for seed, backbone in enumerate(pair)
    )
    return student, teacher


def build_ours(
    plan: TrainPlan, work: Workload, pair: tuple[LoadedBackbone, LoadedBackbone]
) -> Callable[[], None]:
    """Return a function that takes one of our steps."""
    student, teacher = build_models(plan, pair)
    optimizer = build_shared_optimizer(
        [student.trainable_parameters(), teacher.trainable_parameters()],
        weight_decay=plan.weight_decay,
    )
    set_learning_rate(optimizer, plan.learning_rate)
    tie = Distillation(plan.distillation, student.backbone, teacher.backbone, seed=0)
    trainees = Trainee("student", student), Trainee("teacher", teacher)
    step = TrainStep(plan, *trainees, tie, optimizer)
    generator = torch.Generator().manual_seed(0)

    def take() -> None:
        order = torch.randperm(len(work.labels), generator=generator)[: plan.batch_size]
        step(work.split, order.to(work.split.labels.device), epoch=0, step=0)

    return take


def build_released(
    plan: TrainPlan,
    work: Workload,
    pair: tuple[LoadedBackbone, LoadedBackbone],
    *,
    autocast: bool,
    plain_attention: bool,
) -> Callable[[], None]:
    """Return a function that takes one step in the released code's way."""
    student, teacher = build_models(plan, pair)
    optimizers = [
        build_optimizer(model, plan.weight_decay, plan.learning_rate)
        for model in (student, teacher)
    ]
    device = work.split.labels.device
    dataset = JpegDataset(work.files, work.labels, work.image_px)
    batches = cycle_batches(dataset, plan.batch_size)
    distill = build_logit_loss(plan.distillation)

    def take() -> None:
        for backbone in pair:
            set_plain_attention(backbone.module, plain=plain_attention)
        images, labels = (tensor.to(device) for tensor in next(batches))
        backward_twice(student, teacher, images, labels, distill, autocast=autocast)
        for optimizer in optimizers:
            optimizer.step()
        for backbone in pair:
            set_plain_attention(backbone.module, plain=False)

    return take


def set_plain_attention(module: nn.Module, *, plain: bool) -> None:
    """Choose between softmax(qk)v and torch's fused kernel."""
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = not plain  # type: ignore[assignment] # a plain flag


def compare_gradients(
    plan: TrainPlan,
    work: Workload,
    reference_pair: tuple[LoadedBackbone, LoadedBackbone],
    pair: tuple[LoadedBackbone, LoadedBackbone],
) -> dict[str, float]:
    """Return how far our gradients are from the released step's, in fp32 and on one batch."""
    rows = torch.arange(plan.batch_size, device=work.split.labels.device) % len(work.labels)
    references = build_models(plan, reference_pair)
    pixels = work.split.student_images[rows].permute(0, 3, 1, 2).float()
    images = (pixels / 255.0 - 0.5) / 0.5
    distill = build_logit_loss(plan.distillation)
    labels = work.split.labels[rows]
    backward_twice(references[0], references[1], images, labels, distill, autocast=False)
    models = build_models(plan, pair)
    trainees = [Trainee(role, m) for role, m in zip(("student", "teacher"), models, strict=True)]
    optimizer = build_shared_optimizer(
        [model.trainable_parameters() for model in models], weight_decay=0.0
    )
    tie = Distillation(
        plan.distillation, trainees[0].model.backbone, trainees[1].model.backbone, seed=0
    )
    step = TrainStep(plan, trainees[0], trainees[1], tie, optimizer)
    torch.autograd.backward(step.losses(work.split, rows, epoch=0, step=0)[0])
    outcome = {}
    for trainee, reference, factor in zip(trainees, references, (1.0, 0.5), strict=True):
        ours = torch.cat([_grad(p) for p in trainee.model.parameters()])
        theirs = factor * torch.cat([_grad(p) for p in reference.parameters()])
        outcome[f"{trainee.role} relative error"] = float((ours - theirs).norm() / theirs.norm())
        outcome[f"{trainee.role} cosine"] = float(torch.cosine_similarity(ours, theirs, dim=0))
    return outcome


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every trainable tensor takes part in the loss"
    return parameter.grad.flatten()


def time_variants(
    variants: dict[str, Callable[[], None]], rounds: int, steps: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return seconds a step of every variant, and its speed relative to the released fp32."""
    for take in variants.values():
        take()
        take()
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    shuffle = random.Random(0)  # noqa: S311 - an order of measurement
    for _ in range(rounds):
        names = list(variants)
        shuffle.shuffle(names)
        for name in names:
            started_cpu_s, started_s = time.process_time(), time.perf_counter()
            for _ in range(steps):
                variants[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            cpu[name].append((time.process_time() - started_cpu_s) / steps)
            wall[name].append((time.perf_counter() - started_s) / steps)
    base = "released fp32"
    outcome = {}
    for name in variants:
        cpu_ratios = [b / own for b, own in zip(cpu[base], cpu[name], strict=True)]
        wall_ratios = [b / own for b, own in zip(wall[base], wall[name], strict=True)]
        outcome[name] = {
            "cpu_s_per_step": statistics.median(cpu[name]),
            "wall_s_per_step": statistics.median(wall[name]),
            "cpu_speedup": statistics.median(cpu_ratios),
            "cpu_speedup_min": min(cpu_ratios),
            "cpu_speedup_max": max(cpu_ratios),
            "wall_speedup": statistics.median(wall_ratios),
            "wall_speedup_min": min(wall_ratios),
            "wall_speedup_max": max(wall_ratios),
        }
    return outcome


def describe_run(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to judge the times."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": str(device),
        "gpu": gpu,
        **describe_machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def print_result(result: dict[str, Any]) -> None:
    """Print the gradients' agreement and the table of ratios."""
    print(
        f"pair {result['pair']} ({result['weights']} weights), batch {result['batch_size']}, "
        f"{result['machine']['device']}, {result['machine']['threads']} threads, "
        f"torch {result['machine']['torch']}"
    )
    for name, figures in result["gradients"].items():
        listed = ", ".join(
            f"{key} {value:.2e}" if "error" in key else f"{key} {value:.6f}"
            for key, value in figures.items()
        )
        print(f"gradients of {name} against the released step: {listed}")
    print(f"\n{'variant':42}{'CPU s/step':>11}{'times faster, CPU (min-max)':>31}{'wall':>22}")
    for name, row in result["times"].items():
        cpu = (
            f"{row['cpu_speedup']:.2f} ({row['cpu_speedup_min']:.2f}-{row['cpu_speedup_max']:.2f})"
        )
        wall = (
            f"{row['wall_speedup']:.2f} "
            f"({row['wall_speedup_min']:.2f}-{row['wall_speedup_max']:.2f})"
        )
        print(f"{name:42}{row['cpu_s_per_step']:11.3f}{cpu:>31}{wall:>22}")


def add_result(path: Path, result: dict[str, Any]) -> None:
    """Put the result under its pair's name into a JSON file, beside those of other pairs."""
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    results[result["pair"]] = result
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
