"""This service's inference against LitServe and FastAPI + timm, in one run.

For each number of models the systems are started once, checked against the network itself, warmed,
and then measured in turns, in random order; a system that is not measured is stopped (SIGSTOP).
Beside this service with many models it is measured with one, so that a machine that gets slower
meanwhile does not count. First the peers' settings are chosen by short closed loops (the best is
kept and named); then each round finds every system's peak in a closed loop; then, unless --peaks,
open loops offer shares of the peaks and the same absolute rates. Ratios are of a round's peaks;
printed are the median and the range over rounds. Rows say the precision of each side.
"""

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.machine import describe_machine
from benchmarks.serving import parity
from benchmarks.serving.models import Stock, make_stock
from benchmarks.serving.peers.network import STRATEGIES
from benchmarks.serving.systems import System, build_fastapi, build_litserve, build_service

PACKAGES = ("torch", "timm", "fastapi", "uvicorn", "litserve", "pillow", "simplejpeg")
#: Models and images of the gate.
_GATE = (16, 4)
_CORES = os.cpu_count() or 1
#: What the peers may be set to: processes or threads, largest batch, how long one waits to fill.
_GRIDS: dict[str, list[dict[str, Any]]] = {
    "litserve": [
        {"workers": workers, "batch": batch, "timeout_s": timeout_s}
        for workers in sorted({1, min(2, _CORES), min(4, _CORES), min(8, _CORES)})
        for batch, timeout_s in ((8, 0.001), (8, 0.005), (32, 0.005), (64, 0.01))
    ],
    "fastapi": [{"workers": workers} for workers in sorted({1, min(2, _CORES), _CORES})],
}

#: A peer and its precision -> its settings.
Tuned = dict[tuple[str, str], dict[str, Any]]


def main() -> int:
    """Run what the command line asks for."""
    args = _read_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the systems are ended too
    folder = Path(tempfile.mkdtemp(prefix="idat-serving-"))
    try:
        stock = _make_stock(args, folder / "stock")
        tuned: Tuned = {}
        for count in args.models:
            _measure_count(args, stock, count, folder / f"service-{count}", tuned)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is left running", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--network", default="vit_tiny_patch16_224.augreg_in21k", help="timm name")
    add("--models", type=int, nargs="+", default=[1, 16, 256, 1000], help="numbers of models")
    add("--zipf", type=float, default=0.0, help="exponent of the models' popularity; 0: uniform")
    add("--hidden-dim", type=int, default=8)
    add("--classes", type=int, default=100)
    add("--image-size", type=int, nargs=2, default=[500, 375], metavar=("W", "H"))
    add("--service-precisions", nargs="+", default=["fp32", "bf16"], choices=("fp32", "bf16"))
    add("--peer-precisions", nargs="+", default=["fp32"], choices=("fp32", "bf16"))
    add("--peer-decoder", default="pillow", choices=("pillow", "service"))
    add("--rounds", type=int, default=5)
    add("--seconds", type=float, default=8.0, help="of each slice of load")
    add("--warm-s", type=float, default=2.0, help="of load before each slice, not counted")
    add("--connections", type=int, default=32, help="of the closed loops")
    add("--deadline-s", type=float, default=5.0, help="an answer after it is worth nothing")
    add("--shares", type=float, nargs="*", default=[0.25, 0.5, 0.7, 0.9, 1.1, 2.0])
    add("--peaks", action="store_true", help="closed loops only")
    add("--no-grid", action="store_true", help="take the peers' default settings")
    add("--out", type=Path, help="append JSON lines")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def _make_stock(args: argparse.Namespace, folder: Path) -> Stock:
    count = max(args.models)
    width, height = args.image_size
    made = make_stock(
        folder,
        args.network,
        count,
        hidden_dim=args.hidden_dim,
        classes=args.classes,
        size=(width, height),
    )
    for done in made:
        if done % 50 == 0 or done == count:
            print(f"\rmade {done} of {count} models", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return Stock(folder, args.network, count, args.hidden_dim, args.classes)


def _measure_count(
    args: argparse.Namespace, stock: Stock, count: int, folder: Path, tuned: Tuned
) -> None:
    systems = [
        build_service(stock, models, folder / f"{precision}-{models}", precision=precision)
        for precision in args.service_precisions
        for models in sorted({count, 1})
    ]
    for system in systems:  # what is worth nothing to those who ask, it need not promise
        system.environment["IDAT_INFERENCE_DEADLINE_S"] = str(args.deadline_s)
    for precision in args.peer_precisions:
        systems += _choose_peers(args, stock, count, precision, tuned)
    images = stock.images()[: _GATE[1]]
    gate = list(range(min(_GATE[0], count)))
    expected = parity.expect(stock, gate, images)
    with ExitStack() as stack:
        for system in systems:
            _say(f"{count} models: starting {_name(system)}")
            stack.enter_context(system)
            own = gate[: len(system.names)]
            difference = parity.check(system, own, images, expected)
            _say(f"  agrees with the network within {difference:.1e}")
            _warm(system, stock)
            system.pause()
        peaks = _measure_peaks(args, stock, count, systems)
        if not args.peaks:
            rivals = [system for system in systems if len(system.names) == count]
            _measure_shares(args, stock, count, rivals, peaks)


def _choose_peers(
    args: argparse.Namespace, stock: Stock, count: int, precision: str, tuned: Tuned
) -> Iterator[System]:
    """Return each peer with the settings that are fastest here.

    Workers, batch and waiting time are settled once for a precision, with one model; the strategy
    for each number of models.
    """
    common: dict[str, Any] = {"precision": precision, "decoder": args.peer_decoder}
    for label, build in (("litserve", build_litserve), ("fastapi", build_fastapi)):
        if (label, precision) not in tuned:
            grid = [{}] if args.no_grid else _GRIDS[label]
            candidates = [build(stock, 1, **common, **settings) for settings in grid]
            best = _find_fastest(args, stock, candidates)
            tuned[label, precision] = grid[candidates.index(best)]
        # A request of FastAPI's is for one model: it has nothing to loop over.
        strategies = [s for s in STRATEGIES if label == "litserve" or s != "loop"]
        settings = tuned[label, precision]
        candidates = [
            build(stock, count, **common, **settings, strategy=strategy)
            for strategy in (strategies if count > 1 else STRATEGIES[:1])
        ]
        yield _find_fastest(args, stock, candidates)


def _find_fastest(args: argparse.Namespace, stock: Stock, candidates: list[System]) -> System:
    if len(candidates) == 1:
        return candidates[0]
    best, best_rate = candidates[0], -1.0
    for system in candidates:
        with system:
            system.load(system.plan(stock, seconds=1.0, connections=args.connections))
            figures = system.load(
                system.plan(
                    stock, seconds=args.seconds / 2, connections=args.connections, zipf=args.zipf
                )
            )
        _say(f"  {_name(system)}: {figures['answered']} images/s")
        if figures["answered"] > best_rate:
            best, best_rate = system, figures["answered"]
    _say(f"  chosen: {_name(best)}")
    return best


def _warm(system: System, stock: Stock) -> None:
    """Ask every model once, so that no slice pays for a first load."""
    image = stock.images()[0]
    for name in system.names:
        parity.ask(system, name, image)


def _wake(args: argparse.Namespace, stock: Stock, system: System) -> None:
    """Let it run again, and get over what it slept through: connections, caches, references."""
    system.go_on()
    if args.warm_s:
        system.load(
            system.plan(
                stock, seconds=args.warm_s, connections=args.connections, zipf=args.zipf, seed=-1
            )
        )


def _measure_peaks(
    args: argparse.Namespace, stock: Stock, count: int, systems: list[System]
) -> dict[str, float]:
    rates: dict[str, list[float]] = {_name(system): [] for system in systems}
    memory: dict[str, int] = {}
    draws = random.Random(args.seed)  # noqa: S311 - of a benchmark
    for round_number in range(args.rounds):
        for system in draws.sample(systems, len(systems)):
            _wake(args, stock, system)
            plan = system.plan(
                stock,
                seconds=args.seconds,
                connections=args.connections,
                zipf=args.zipf,
                seed=args.seed + round_number,
            )
            figures = system.load(plan)
            memory[_name(system)] = system.rss_bytes()
            system.pause()
            rates[_name(system)].append(figures["answered"])
            _write(args, count, system, {"kind": "peak", "round": round_number, **figures})
    print(f"\n{count} models, {'uniform' if not args.zipf else f'Zipf({args.zipf})'}: peaks")
    for system in systems:
        name = _name(system)
        print(
            f"  {name:<70} {median(rates[name]):8.1f} images/s   {memory[name] / 2**20:7.0f} MiB",
            flush=True,
        )
    for ours in (s for s in systems if s.label == "service" and len(s.names) == count):
        for peer in (s for s in systems if s.label != "service" or _is_lone(s, ours)):
            pairs = zip(rates[_name(ours)], rates[_name(peer)], strict=True)
            ratios = [a / b for a, b in pairs if b]
            if not ratios:
                continue
            row = {
                "kind": "ratio",
                "of": f"service {ours.precision}",
                "to": f"{peer.label} {peer.precision}",
                "to_models": len(peer.names),
                "to_settings": peer.settings,
                "median": round(median(ratios), 3),
                "range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
            _write(args, count, ours, row)
            print(
                f"  {row['of']} : {row['to']}"
                f"{' with one model' if _is_lone(peer, ours) else ''} = {row['median']:.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
    _write_memory(args, count, systems, memory)
    return {name: median(values) for name, values in rates.items()}


def _is_lone(system: System, ours: System) -> bool:
    """Say whether it is what `ours` is, with one model instead of many."""
    is_same = (system.label, system.precision) == (ours.label, ours.precision)
    return is_same and len(system.names) == 1 < len(ours.names)


def _write_memory(
    args: argparse.Namespace, count: int, systems: list[System], memory: dict[str, int]
) -> None:
    for system in systems:
        _write(args, count, system, {"kind": "memory", "pss_bytes": memory[_name(system)]})


def _measure_shares(
    args: argparse.Namespace,
    stock: Stock,
    count: int,
    systems: list[System],
    peaks: dict[str, float],
) -> None:
    """Offer shares of each system's own peak, and of the fastest one's to all."""
    fastest = max(peaks[_name(system)] for system in systems)
    offers = [
        (system, share, "own", share * peaks[_name(system)])
        for system in systems
        for share in args.shares
    ]
    offers += [
        (system, share, "fastest", share * fastest)
        for system in systems
        for share in args.shares
        if peaks[_name(system)] != fastest
    ]
    random.Random(args.seed).shuffle(offers)  # noqa: S311 - of a benchmark
    print(f"\n{count} models: open loop, deadline {args.deadline_s} s")
    for system, share, of, rate in offers:
        _wake(args, stock, system)
        plan = system.plan(
            stock,
            seconds=args.seconds,
            rate=rate,
            zipf=args.zipf,
            deadline_s=args.deadline_s,
            seed=args.seed,
        )
        figures = system.load(plan)
        # What is still queued belongs to this slice, not to the next.
        parity.ask(system, system.names[0], stock.images()[0], patience_s=120)
        system.pause()
        _write(args, count, system, {"kind": "open", "share": share, "of": of, **figures})
        print(
            f"  {_name(system):<70} {share:4.2f} of {of:<7} {rate:7.1f}/s: "
            f"goodput {figures['goodput']:7.1f}  p50 {figures['p50_ms']}  p95 {figures['p95_ms']}  "
            f"p99 {figures['p99_ms']} ms  rejected {figures['rejected']} "
            f"(p99 {figures['rejected_p99_ms']} ms)",
            flush=True,
        )


def _name(system: System) -> str:
    described = system.settings or ({"models": 1} if len(system.names) == 1 else {})
    settings = ", ".join(f"{key} {value}" for key, value in described.items())
    return f"{system.label} {system.precision}{f' ({settings})' if settings else ''}"


def _write(args: argparse.Namespace, count: int, system: System, row: dict[str, Any]) -> None:
    if args.out is None:
        return
    about = {
        "benchmark": "serving",
        **describe_machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "network": args.network,
        "hidden_dim": args.hidden_dim,
        "classes": args.classes,
        "image_size": args.image_size,
        "models": count,
        "system_models": len(system.names),
        "zipf": args.zipf,
        "system": system.label,
        "precision": system.precision,
        "settings": system.settings,
    }
    with args.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**about, **row}) + "\n")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
