"""Compare a mixed batch from a bank of adapters with one model's own forward, a loop and hot swap.

    python benchmarks/bank.py --backbone starter
    python benchmarks/bank.py --backbone vit-s --precision bf16 --batch-size 16 --out result.jsonl

Answers are compared before anything is timed. Times are CPU time of the process, which other work
on the machine does not lengthen, or wall time on a GPU. In every round each variant runs once, in
random order; ratios to one model's own forward are taken within a round, and the median, least and
greatest over the rounds are printed. Weights are random.
"""

import argparse
import dataclasses
import json
import math
import platform
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.catalog.methods import AdapterKind, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.stream import change_output
from core.ml.backbones.frozen_linear import fast_frozen_linears
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.backbones.precision import resolve_device
from core.ml.data.preprocess import PREPROCESS_VERSION
from core.ml.export.bundle import Bundle, BundleBackbone
from core.ml.export.certificate import certify
from core.ml.inference.engine import Engine, Resident

BACKBONES = {
    "starter": "vit_starter_student_patch8_64",
    "vit-ti": "vit_tiny_patch16_224",
    "vit-s": "vit_small_patch16_224",
    "vit-b": "vit_base_patch16_224",
}
RESIDENTS = 1000
MIXES = (1, 16, 256, 1000)
CLASSES = 100
#: Models that have a real certificate; making one costs a forward.
CERTIFIED = 20

Run = Callable[[list[int], list[Any]], Any]


def main() -> None:
    """Parse the options, run, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="starter")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hidden-dim", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--out", type=Path, help="JSONL file that the result is added to")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = Comparison(options).run()
    print(json.dumps(result, indent=2))
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


class Comparison:
    """One backbone with a thousand models on it, and its rivals on a backbone of their own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._device = resolve_device(options.device)
        self._precision = Precision(options.precision)
        name = BACKBONES[options.backbone]
        self._name = name
        self._spec = AdapterSpec(AdapterKind.SEQUENTIAL, options.hidden_dim)
        self._backbone = load_backbone(name, pretrained=False)
        wide = load_backbone(name, pretrained=False)
        self._bundles = build_bundles(wide, self._spec)
        self._backbone.place(device=self._device, precision=self._precision, for_training=False)
        self._model = AdaptedModel(self._backbone, self._spec, CLASSES, seed=0)
        self._model.requires_grad_(requires_grad=False)
        self._engine = Engine(
            device=self._device,
            precision=self._precision,
            max_batch=max(64, options.batch_size),
            load=lambda wanted: load_backbone(wanted, pretrained=False),
        )
        self._residents: list[Resident] = []

    def run(self) -> dict[str, Any]:
        """Admit, compare answers, time, and return everything as JSON values."""
        before_mb = _read_rss_mb()
        admission = self._admit()
        grown_mb = _read_rss_mb() - before_mb
        difference = self._compare()
        return {
            "backbone": self._name,
            "precision": self._precision.value,
            "batch_size": self._options.batch_size,
            "hidden_dim": self._options.hidden_dim,
            "device": str(self._device),
            "threads": torch.get_num_threads(),
            "versions": {
                "torch": torch.__version__,
                "timm": timm.__version__,
                "python": platform.python_version(),
            },
            "admission": admission,
            # All that the process grew by, with the allocator's and torch's own, when the network
            # and its models came in.
            "memory": {**self._measure_memory(), "process_grew_by_mb": grown_mb},
            "largest_difference_of_a_logit": difference,
            "ratios_to_one_model": self._time(),
        }

    def _admit(self) -> dict[str, float]:
        started_s = time.perf_counter()
        self._engine.prepare(self._name)
        prepared_s = time.perf_counter()
        self._engine.evict(self._engine.admit(self._bundles[-1]))  # makes the bank
        first_s = time.perf_counter()
        for bundle in self._bundles:
            self._residents.append(self._engine.admit(bundle))
            if len(self._residents) == CERTIFIED:
                certified_s = time.perf_counter()
        ended_s = time.perf_counter()
        return {
            "prepare_s": prepared_s - started_s,
            "first_model_of_a_bank_ms": 1e3 * (first_s - prepared_s),
            "certified_model_ms": 1e3 * (certified_s - first_s) / CERTIFIED,
            "uncertified_model_ms": 1e3 * (ended_s - certified_s) / (RESIDENTS - CERTIFIED),
        }

    def _measure_memory(self) -> dict[str, float]:
        backbone = sum(tensor.nbytes for tensor in self._backbone.module.state_dict().values())
        itemsize = self._backbone.dtype.itemsize
        full = RESIDENTS * backbone * 4 / itemsize  # what others keep: fp32
        adapters = sum(resident.size_bytes for resident in self._residents)
        reserved = self._engine.bank_bytes(self._name)
        return {
            "backbone_mb": backbone / 1e6,
            "adapters_and_heads_mb": adapters / 1e6,
            "reserved_for_them_mb": reserved / 1e6,
            "full_fp32_models_to_ours": full / (backbone + reserved),
            "full_models_of_this_precision_to_ours": RESIDENTS * backbone / (backbone + reserved),
        }

    def _compare(self) -> float:
        chosen = list(range(0, RESIDENTS, RESIDENTS // 16))[:16]
        pixels = self._draw(16)
        mixed = self._run_bank(chosen, pixels)
        worst = 0.0
        for model, image, output in zip(chosen, pixels, mixed, strict=True):
            self._model.load_adapter_state(self._bundles[model].state)
            logits = self._model(self._normalise([image])).cpu().numpy()[0]
            worst = max(worst, float(np.abs(logits - output.logits).max()))
        return worst

    def _time(self) -> dict[str, dict[str, float]]:
        size = self._options.batch_size
        variants: dict[str, tuple[Run, int]] = {"one_model": (self._run_one, 1)}
        for mix in MIXES:
            variants[f"bank_{mix}"] = (self._run_bank, mix)
        for mix in (1, 16, 1000):
            variants[f"loop_{mix}"] = (self._run_loop, mix)
        variants["hot_swap_16"] = (self._run_swap, 16)
        times: dict[str, list[float]] = {name: [] for name in variants}
        draw = random.Random(0)  # noqa: S311 - an order, no secret
        for turn in range(self._options.rounds + 1):
            pixels = self._draw(size)
            for name in draw.sample(sorted(variants), len(variants)):
                run, mix = variants[name]
                models = draw.choices(range(mix), k=size) if mix > 1 else [0] * size
                clock = time.process_time if self._device.type == "cpu" else time.perf_counter
                started_s = clock()
                run(models, pixels)
                if turn:  # the first round warms up
                    times[name].append(clock() - started_s)
        summary = {}
        for name, taken in times.items():
            ratios = [mine / one for mine, one in zip(taken, times["one_model"], strict=True)]
            summary[name] = {
                "median_ms": 1e3 * statistics.median(taken),
                "throughput": 1 / statistics.median(ratios),
                "least": 1 / max(ratios),
                "greatest": 1 / min(ratios),
            }
        return summary

    def _draw(self, count: int) -> list[Any]:
        px = self._backbone.image_px
        rng = np.random.default_rng(count)
        return list(rng.standard_normal((count, 3, px, px), dtype=np.float32))

    def _normalise(self, pixels: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(pixels)).to(self._device, self._backbone.dtype)

    def _run_one(self, models: list[int], pixels: list[Any]) -> Tensor:  # noqa: ARG002
        with torch.no_grad():
            logits: Tensor = self._model(self._normalise(pixels))
            return logits.cpu()

    def _run_bank(self, models: list[int], pixels: list[Any]) -> Any:  # noqa: ANN401
        return self._engine.forward([self._residents[model] for model in models], pixels)

    def _run_swap(self, models: list[int], pixels: list[Any]) -> list[Tensor]:
        answers = []
        for model in sorted(set(models)):
            self._model.load_adapter_state(self._bundles[model].state)
            mine = [image for image, wanted in zip(pixels, models, strict=True) if wanted == model]
            answers.append(self._run_one([], mine))
        return answers

    def _run_loop(self, models: list[int], pixels: list[Any]) -> Tensor:
        """Do what PEFT's `adapter_names` does: in every layer, one adapter after the other."""
        which = torch.tensor(models)
        groups = [(model, (which == model).nonzero()[:, 0]) for model in sorted(set(models))]
        states = {m: self._bundles[m].state for m, _ in groups}

        def change(block: int, z: Tensor) -> Tensor:
            result = z.clone()
            for model, images in groups:
                state, mine = states[model], z[images]
                down, down_bias, up, up_bias = (
                    state[f"adapters.{block}.{part}"].to(z.device, z.dtype)
                    for part in ("down.weight", "down.bias", "up.weight", "up.bias")
                )
                hidden = torch.nn.functional.linear(mine, down, down_bias)
                added = torch.nn.functional.linear(torch.nn.functional.gelu(hidden), up, up_bias)
                result[images] = mine + added
            return result

        handles = [
            change_output(block, partial(change, index))
            for index, block in enumerate(self._backbone.blocks)
        ]
        try:
            with torch.no_grad(), fast_frozen_linears(self._backbone):
                features = self._backbone.module(self._normalise(pixels)).float()
                logits = torch.zeros(len(models), CLASSES, device=self._device)
                for model, images in groups:
                    weight, bias = (
                        states[model][f"head.{part}"].to(self._device)
                        for part in ("weight", "bias")
                    )
                    logits[images] = torch.nn.functional.linear(features[images], weight, bias)
                return logits.cpu()
        finally:
            for handle in handles:
                handle.remove()


def _read_rss_mb() -> float:
    """Return this process's resident memory; NaN where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return math.nan
    return pages * resource.getpagesize() / 1e6


def build_bundles(backbone: LoadedBackbone, spec: AdapterSpec) -> list[Bundle]:
    """Return models of random weights, the first of them with a certificate."""
    model = AdaptedModel(backbone, spec, CLASSES, seed=0)
    bundles = []
    described = BundleBackbone(
        name=backbone.name,
        weights_sha256=backbone.weights_sha256,
        image_px=backbone.image_px,
        mean=backbone.mean,
        std=backbone.std,
        num_features=backbone.num_features,
        block_widths=backbone.block_widths,
        preprocess_version=PREPROCESS_VERSION,
    )
    for index in range(RESIDENTS):
        generator = torch.Generator().manual_seed(index)
        state = {
            name: 0.02 * torch.randn(parameter.shape, generator=generator)
            for name, parameter in model.named_parameters()
        }
        bundle = Bundle(
            backbone=described,
            spec=spec,
            classes=tuple(f"class {i}" for i in range(CLASSES)),
            state=state,
            sha256=f"{index:064x}",
            config={},
            config_sha256=f"{index:064x}",
        )
        if index < CERTIFIED:
            model.load_adapter_state(state)
            bundle = dataclasses.replace(bundle, certificate=certify(model))
        bundles.append(bundle)
    return bundles


if __name__ == "__main__":
    main()
