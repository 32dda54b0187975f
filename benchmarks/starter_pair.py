"""What the starter pair is worth: `python -m benchmarks.starter_pair --cifar cifar10-1k.zip`.

For every task and seed: logistic regression on raw pixels, linear probes of the student with random
and with its shipped weights, plain adapters, and iDAT. Settings are named on the command line and
chosen with `--split val`; the test split is for the final table. Each row goes to the results
file as soon as it is known; rows that are there already are not computed again.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks.tasks import U8, Task, cifar10_1k, digits, orientation
from core.catalog.methods import AdapterKind, DistillationLoss, MethodType
from core.catalog.pairs import STARTER_STUDENT, STARTER_TEACHER
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.precision import resolve_precision
from core.ml.data.preprocess import resize_image
from core.ml.training.loop import train
from core.ml.training.plan import build_plan
from core.ml.training.resident import ResidentData, ResidentSplit, build_split
from pretraining.evaluate import STRENGTHS, probe

_METHODS = ("raw pixels", "probe, random", "probe, pretrained", "plain adapters", "iDAT")


@dataclass(frozen=True)
class Options:
    """How the adapters are trained; see `core.ml.training.plan.build_plan`."""

    kind: AdapterKind
    hidden_dim: int
    scale: float
    learning_rate: float
    weight_decay: float
    drop_path: float
    epochs: int
    loss: DistillationLoss
    loss_weight: float
    weights_dir: Path | None


def main() -> None:
    """Compute the missing rows and print the table."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    options = Options(
        kind=AdapterKind(arguments.kind),
        hidden_dim=arguments.hidden_dim,
        scale=arguments.scale,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        drop_path=arguments.drop_path,
        epochs=arguments.epochs,
        loss=DistillationLoss(arguments.loss),
        loss_weight=arguments.loss_weight,
        weights_dir=arguments.weights_dir,
    )
    rows = _read_rows(arguments.out)
    settings = {name: str(value) for name, value in vars(options).items() if name != "weights_dir"}
    for task_name, seed, method in _combinations(arguments):
        key = {"task": task_name, "seed": seed, "method": method}
        if method in ("plain adapters", "iDAT"):
            key |= settings
        if any(all(row.get(k) == v for k, v in key.items()) for row in rows):
            continue
        task = _build_task(task_name, seed, arguments.cifar)
        row = {**key, **_measure(method, task, seed, options)}
        rows.append(row)
        _append_row(arguments.out, row)
        print(f"{task_name:12} seed {seed}  {method:18} {_show(row, arguments.split)}", flush=True)
    _print_table(rows, arguments, settings)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar", type=Path, help="zip of CIFAR-10 images in train/val/test")
    parser.add_argument("--tasks", nargs="+", default=["digits", "cifar10-1k", "orientation"])
    parser.add_argument("--methods", nargs="+", default=list(_METHODS), choices=_METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--kind", default="parallel", choices=[kind.value for kind in AdapterKind])
    parser.add_argument("--hidden-dim", type=int, default=8)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=2e-2)
    parser.add_argument("--weight-decay", type=float, default=5e-5)
    parser.add_argument("--drop-path", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--loss", default="mse", choices=[loss.value for loss in DistillationLoss])
    parser.add_argument("--loss-weight", type=float, default=1.0)
    parser.add_argument("--split", default="test", choices=["val", "test"], help="what to print")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights-dir", type=Path, help="other weights than the shipped ones")
    parser.add_argument("--out", type=Path, required=True, help="results file, JSON lines")
    return parser.parse_args()


def _combinations(arguments: argparse.Namespace) -> Iterator[tuple[str, int, str]]:
    for seed in arguments.seeds:
        for task in arguments.tasks:
            if task == "cifar10-1k" and arguments.cifar is None:
                continue
            for method in arguments.methods:
                yield task, seed, method


def _build_task(name: str, seed: int, cifar: Path) -> Task:
    """Draw the task; CIFAR-10 is one fixed draw: there only the training differs by seed."""
    builders: dict[str, Callable[[], Task]] = {
        "digits": lambda: digits(seed=seed),
        "orientation": lambda: orientation(seed=seed),
        "cifar10-1k": lambda: cifar10_1k(cifar),
    }
    return builders[name]()


def _measure(method: str, task: Task, seed: int, options: Options) -> dict[str, Any]:
    if method == "raw pixels":
        return _raw_pixels(task)
    if method.startswith("probe"):
        torch.manual_seed(seed)
        student = timm.create_model(STARTER_STUDENT, num_classes=0)
        if method == "probe, pretrained":
            student = load_backbone(STARTER_STUDENT, weights_dir=options.weights_dir).module
        return {"test": probe(student, task)}
    return _train(task, seed, options, with_teacher=method == "iDAT")


def _raw_pixels(task: Task) -> dict[str, Any]:
    """Fit logistic regression on standardised pixels; validation chooses the penalty."""
    flat = {split: x.reshape(len(x), -1).astype(np.float32) for split, x in task.images.items()}
    scaler = StandardScaler().fit(flat["train"])
    fits = []
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        for strength in STRENGTHS:
            model = LogisticRegression(C=strength, max_iter=300)
            model.fit(scaler.transform(flat["train"]), task.labels["train"])
            accuracy = model.score(scaler.transform(flat["val"]), task.labels["val"])
            fits.append((accuracy, strength, model))
    best_accuracy, _, best = max(fits, key=lambda fit: fit[:2])
    test = best.score(scaler.transform(flat["test"]), task.labels["test"])
    return {"val": 100 * float(best_accuracy), "test": 100 * float(test)}


def _train(task: Task, seed: int, options: Options, *, with_teacher: bool) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student = load_backbone(STARTER_STUDENT, weights_dir=options.weights_dir)
    teacher = None
    if with_teacher:
        teacher = load_backbone(STARTER_TEACHER, weights_dir=options.weights_dir)
    plan = build_plan(
        method=MethodType.IDAT if with_teacher else MethodType.ADAPTER,
        kind=options.kind,
        hidden_dim=options.hidden_dim,
        scale=options.scale,
        num_classes=len(task.classes),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        drop_path=options.drop_path,
        epochs=options.epochs,
        precision=resolve_precision("auto", device),
        seed=seed,
        loss=options.loss,
        loss_weight=options.loss_weight,
    )
    data = ResidentData(
        train=_split(task, "train", student, device, with_teacher=with_teacher),
        val=_split(task, "val", student, device, with_teacher=with_teacher),
        test=_split(task, "test", student, device, with_teacher=with_teacher),
        fingerprint=task.name,
    )
    result = train(plan, data, student=student, teacher=teacher, device=device)
    assert result.val is not None
    assert result.test is not None
    return {
        "val": 100 * result.val.accuracy,
        "val_loss": result.val.loss,
        "test": 100 * result.test.accuracy,
        "teacher_val": result.teacher_val and 100 * result.teacher_val.accuracy,
        "teacher_test": result.teacher_test and 100 * result.teacher_test.accuracy,
        "best_epoch": result.best_epoch,
    }


def _split(
    task: Task, split: str, student: LoadedBackbone, device: torch.device, *, with_teacher: bool
) -> ResidentSplit:
    images: U8 = np.stack([resize_image(x, student.image_px) for x in task.images[split]])
    others = images if with_teacher else None
    return build_split(images, task.labels[split], device=device, teacher_images=others)


def _show(row: dict[str, Any], split: str) -> str:
    value = row.get(split)
    return "-" if value is None else f"{split} {value:.1f} %"


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def _append_row(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _print_table(
    rows: list[dict[str, Any]], arguments: argparse.Namespace, settings: dict[str, str]
) -> None:
    tasks = [task for task in arguments.tasks if any(row["task"] == task for row in rows)]
    print(f"\n{arguments.split} accuracy in %, mean ± standard deviation over seeds\n")
    print("| method | " + " | ".join(tasks) + " |")
    print("|---|" + "---|" * len(tasks))
    shown = [*_METHODS, "iDAT, its teacher"]
    for method in shown:
        cells = [_cell(rows, task, method, arguments, settings) for task in tasks]
        print(f"| {method} | " + " | ".join(cells) + " |")


def _cell(
    rows: list[dict[str, Any]],
    task: str,
    method: str,
    arguments: argparse.Namespace,
    settings: dict[str, str],
) -> str:
    column = arguments.split
    if method == "iDAT, its teacher":
        method, column = "iDAT", f"teacher_{column}"
    values = [
        row[column]
        for row in rows
        if (row["task"], row["method"]) == (task, method)
        and row["seed"] in arguments.seeds
        and row.get(column) is not None
        and all(row.get(k, v) == v for k, v in settings.items())
    ]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
