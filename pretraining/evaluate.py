"""Linear probes of the starter pair, random and pretrained: `python -m pretraining.evaluate`."""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from benchmarks.tasks import BUILT_IN, SPLITS, U8, Task, cifar10_1k
from pretraining.checkpoint import backbone_weights
from pretraining.model import NAMES

#: Inverse strengths of the probe's L2 penalty; the validation split chooses.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)


def to_inputs(images: U8) -> Tensor:
    """Return (images, 3, 64, 64) in [-1, 1], enlarged bicubically."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    large = nn.functional.interpolate(pixels, size=(64, 64), mode="bicubic", antialias=True)
    return large.clamp(0, 1) * 2 - 1


@torch.inference_mode()
def class_features(backbone: nn.Module, images: U8) -> NDArray[np.float32]:
    """Return class-token features (images, dim)."""
    backbone.eval()
    parts = [backbone(part).numpy() for part in torch.split(to_inputs(images), 200)]
    return np.concatenate(parts)


def probe(backbone: nn.Module, task: Task) -> float:
    """Return test accuracy in % of logistic regression on standardised class-token features."""
    features = {split: class_features(backbone, task.images[split]) for split in SPLITS}
    scaler = StandardScaler().fit(features["train"])
    inputs = {split: scaler.transform(features[split]) for split in SPLITS}
    fits = []
    # BLAS threads on matrices this small mostly wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties may need more steps
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=300)
            model.fit(inputs["train"], task.labels["train"])
            fits.append((model.score(inputs["val"], task.labels["val"]), strength, model))
    _, _, best = max(fits, key=lambda fit: fit[:2])
    return 100 * float(best.score(inputs["test"], task.labels["test"]))


def build_backbones(
    checkpoints: Mapping[str, Path], *, with_random: bool = True
) -> dict[str, nn.Module]:
    """Return the backbones to compare: random, shipped, or as in given checkpoints."""
    backbones: dict[str, nn.Module] = {}
    for role, name in NAMES.items():
        if with_random:
            torch.manual_seed(0)
            backbones[f"{role}, random"] = timm.create_model(name, num_classes=0)
        if role not in checkpoints:
            backbones[role] = timm.create_model(name, pretrained=True, num_classes=0)
            continue
        for label, averaged in (("average", True), ("last", False)):
            backbone = timm.create_model(name, num_classes=0)
            backbone.load_state_dict(backbone_weights(checkpoints[role], averaged=averaged))
            backbones[f"{role}, {label}"] = backbone
    return backbones


def main() -> None:
    """Print one line per backbone: test accuracy in % by task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="zip of CIFAR-10 images in train/val/test")
    parser.add_argument("--student", type=Path, help="training checkpoint instead of the shipped")
    parser.add_argument("--teacher", type=Path, help="training checkpoint instead of the shipped")
    parser.add_argument("--no-random", action="store_true", help="skip random backbones")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks = [build() for build in BUILT_IN.values()]
    if options.cifar:
        tasks.append(cifar10_1k(options.cifar))
    given = {role: getattr(options, role) for role in NAMES if getattr(options, role)}
    width = max(len(task.name) for task in tasks) + 2
    print(" " * 20 + "".join(f"{task.name:>{width}}" for task in tasks))
    for label, backbone in build_backbones(given, with_random=not options.no_random).items():
        scores = "".join(f"{probe(backbone, task):>{width}.1f}" for task in tasks)
        print(f"{label:20}{scores}", flush=True)


if __name__ == "__main__":
    main()
