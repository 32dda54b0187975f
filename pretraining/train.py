"""Pretrain one starter backbone on generated images: `python -m pretraining.train --help`."""

import argparse
import logging
import time
from pathlib import Path

import torch
from timm.layers.config import set_fused_attn
from torch import Tensor

from pretraining.checkpoint import Average, load_checkpoint, save_checkpoint
from pretraining.images.banks import build_banks
from pretraining.images.degrade import Degrader
from pretraining.images.scenes import draw_batch
from pretraining.model import Pretrainer
from pretraining.schedule import PATCHES, learning_rate, patches_to_keep
from pretraining.targets import TargetBuilder, fit_targets

logger = logging.getLogger("pretraining")

#: Seed offset of the images that the targets are fitted on; the same for every run and role.
TARGET_SEED = 77
TARGET_IMAGES = 2000
LOG_EVERY_STEPS = 200
CHECKPOINT_EVERY_S = 120.0
DEFAULT_RATES = {"teacher": 1.5e-3, "student": 1e-3}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["student", "teacher"], required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt")
    parser.add_argument("--minutes", type=float, default=75.0, help="wall-clock budget, all starts")
    parser.add_argument("--steps", type=int, help="budget in steps instead: exactly repeatable")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, help="peak learning rate (default: by model)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--resume", action="store_true", help="go on from --out/checkpoint.pt")
    return parser.parse_args(arguments)


class ImageStream:
    """Batches of generated images with labels and targets; batch k depends on (seed, k) alone."""

    def __init__(self, seed: int, batch: int, device: torch.device) -> None:
        self.banks = build_banks()
        self.degrade = Degrader()
        self.seed, self.batch, self.device = seed, batch, device
        images, _ = self.images(TARGET_SEED, 0, TARGET_IMAGES)
        self.targets: TargetBuilder = fit_targets(images, torch.Generator().manual_seed(0))

    def images(self, seed: int, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Return images (count, 3, 64, 64) in [0, 1] and labels."""
        images, labels = draw_batch(self.banks, seed, step, count)
        generator = torch.Generator().manual_seed((seed << 32) + step)
        channels_first = torch.from_numpy(images).permute(0, 3, 1, 2)
        return self.degrade(channels_first, generator), torch.from_numpy(labels)

    @torch.no_grad()
    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return images in [-1, 1], labels, class targets and patch targets, on the device."""
        # Offset by one so that no training seed equals TARGET_SEED's images.
        images, labels = self.images(1000 + self.seed, step, self.batch)
        whole, local = self.targets(images)
        device = self.device
        return (images * 2 - 1).to(device), labels.to(device), whole.to(device), local.to(device)


class Meter:
    """Means of the losses since they were last read."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        """Take in one step's losses."""
        self.count += 1
        for name, part in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + part.item()

    def read(self) -> str:
        """Return the means as text and start again."""
        text = "  ".join(f"{name} {total / self.count:.4f}" for name, total in self.sums.items())
        self.sums, self.count = {}, 0
        return text


def decayed_groups(model: Pretrainer, decay: float) -> list[dict[str, object]]:
    """Return parameter groups: weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim == 2]  # noqa: PLR2004
    others = [p for p in model.parameters() if p.ndim != 2]  # noqa: PLR2004
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def train(options: argparse.Namespace) -> None:
    """Run until the budget is spent; write checkpoint.pt every CHECKPOINT_EVERY_S seconds."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = torch.device(options.device)
    # At 25 tokens on a CPU the plain softmax is up to twice as fast in bfloat16 as the fused one.
    set_fused_attn(device.type != "cpu")
    stream = ImageStream(options.seed, options.batch, device)
    _, _, whole, local = stream(0)
    model = Pretrainer(options.model, whole.shape[1], local.shape[2]).to(device)
    optimizer = torch.optim.AdamW(
        decayed_groups(model, 0.05), lr=1e-3, betas=(0.9, 0.98), fused=True
    )
    average = Average(model.backbone)
    path = options.out / "checkpoint.pt"
    step, spent_s = 0, 0.0
    if options.resume:
        step, spent_s = load_checkpoint(path, model, optimizer, average)
    peak = options.rate or DEFAULT_RATES[options.model]
    budget_s, first_step = options.minutes * 60, step
    last = saved = time.monotonic()
    meter = Meter()
    while True:
        progress = step / options.steps if options.steps else spent_s / budget_s
        if progress >= 1:
            break
        rate = learning_rate(peak, progress, step - first_step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels, whole, local = stream(step)
        kept = None
        if (count := patches_to_keep(progress)) < PATCHES:
            generator = torch.Generator().manual_seed(step)
            order = torch.rand(len(images), PATCHES, generator=generator).argsort(dim=1)
            kept = order[:, :count].to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss, parts = model(images, kept, labels, whole, local)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        step += 1
        average.update(model.backbone, step)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss became {loss.item()} at step {step}")
        now = time.monotonic()
        spent_s, last = spent_s + now - last, now
        meter.add(parts)
        if step % LOG_EVERY_STEPS == 0:
            logger.info(
                "step %d  images %d  spent %.1f min  rate %.2e  %s",
                step, step * options.batch, spent_s / 60, rate, meter.read(),
            )  # fmt: skip
        if now - saved > CHECKPOINT_EVERY_S:
            save_checkpoint(path, model, optimizer, average, step=step, spent_s=spent_s)
            saved = now
    save_checkpoint(path, model, optimizer, average, step=step, spent_s=spent_s)
    logger.info("done: %d steps, %d images, %.1f min", step, step * options.batch, spent_s / 60)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(parse_arguments())
