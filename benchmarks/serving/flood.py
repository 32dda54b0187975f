"""What another project's flood does to a quiet one, and an overload to everybody.

    python -m benchmarks.serving.flood

One service, two projects. The peak is found in a closed loop; the quiet project then offers a fifth
of it, alone and beside a flood of ten times as much, in turns; and one project offers twice the
peak. Printed are ratios of one round: the quiet project's p99 under the flood to its p99 alone
(target: at most 2), goodput under overload to the peak, which is found again just before (at least
0.95), and how fast a rejection is answered (under 10 ms), from when its request was due and from
when it was sent: what lies between them the generator was late, which has no core of its own.
"""

import argparse
import json
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.serving import parity
from benchmarks.serving.models import Stock, make_stock
from benchmarks.serving.systems import System, build_service

PROJECTS = ("quiet", "loud")


def main() -> int:
    """Measure, print the ratios, append them to a file if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.flood",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--network", default="vit_tiny_patch16_224.augreg_in21k", help="timm name")
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=15.0, help="of each slice of load")
    add("--share", type=float, default=0.2, help="of the peak that the quiet project offers")
    add("--flood", type=float, default=10.0, help="times as much as the quiet project's")
    add("--deadline-s", type=float, default=5.0)
    add("--out", type=Path, help="append one JSON line")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="idat-flood-"))
    try:
        row = _measure(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(row, indent=2))
    if args.out is not None:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


def _measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    stock = Stock(folder / "stock", args.network, len(PROJECTS), 8, 100)
    for _ in make_stock(
        stock.folder, args.network, stock.count, hidden_dim=8, classes=100, size=(500, 375)
    ):
        pass
    service = build_service(
        stock, stock.count, folder / "data", precision=args.precision, projects=PROJECTS
    )
    service.environment["IDAT_INFERENCE_DEADLINE_S"] = str(args.deadline_s)
    quiet, loud = (service.seen_by(project, index) for index, project in enumerate(PROJECTS))
    with service:
        quiet.adopt(service)
        loud.adopt(service)
        for system in (quiet, loud):
            parity.ask(system, system.names[0], stock.images()[0])
        quiet.load(quiet.plan(stock, seconds=args.seconds / 3))  # warms the fit of batch times
        peak = quiet.load(quiet.plan(stock, seconds=args.seconds))["answered"]
        rounds = [
            _run_round(args, stock, (quiet, loud), peak, number) for number in range(args.rounds)
        ]
    return {
        "benchmark": "flood",
        **describe_machine(),
        "network": args.network,
        "precision": args.precision,
        "peak_per_s": peak,
        "quiet_share": args.share,
        "flood": args.flood,
        "p99_ratio": _describe([r["flooded"]["p99_ms"] / r["alone"]["p99_ms"] for r in rounds]),
        "p50_ratio": _describe([r["flooded"]["p50_ms"] / r["alone"]["p50_ms"] for r in rounds]),
        "overload_goodput_ratio": _describe(
            [r["overload"]["goodput"] / r["peak"]["answered"] for r in rounds]
        ),
        "rejected_p99_ms": _describe([r["overload"]["rejected_p99_ms"] or 0.0 for r in rounds]),
        "rejected_sent_p99_ms": _describe(
            [r["overload"]["rejected_sent_p99_ms"] or 0.0 for r in rounds]
        ),
        "late_share": _describe([_find_late_share(r["overload"]["statuses"]) for r in rounds]),
        "rounds": rounds,
    }


def _run_round(
    args: argparse.Namespace,
    stock: Stock,
    systems: tuple[System, System],
    peak: float,
    number: int,
) -> dict[str, Any]:
    quiet, loud = systems
    common = {"seconds": args.seconds, "deadline_s": args.deadline_s, "seed": number}
    own = quiet.plan(stock, rate=args.share * peak, **common)
    alone = quiet.load(own)
    with ThreadPoolExecutor(1) as pool:
        flood = pool.submit(
            loud.load, loud.plan(stock, rate=args.flood * args.share * peak, **common)
        )
        flooded = quiet.load(own)
        flood_figures = flood.result()
    parity.ask(quiet, quiet.names[0], stock.images()[0], patience_s=120)
    peak_now = loud.load(loud.plan(stock, seconds=args.seconds))
    overload = loud.load(loud.plan(stock, rate=2 * peak_now["answered"], **common))
    parity.ask(quiet, quiet.names[0], stock.images()[0], patience_s=120)
    print(
        f"round {number}: quiet p99 alone {alone['p99_ms']} ms, flooded {flooded['p99_ms']} ms; "
        f"overload goodput {overload['goodput']} of {peak_now['answered']}",
        file=sys.stderr,
        flush=True,
    )
    return {
        "alone": alone,
        "flooded": flooded,
        "flood": flood_figures,
        "peak": peak_now,
        "overload": overload,
    }


def _find_late_share(statuses: dict[str, int]) -> float:
    """Return the part of those admitted who were not answered before their deadline."""
    late = statuses.get("504", 0)
    return late / max(1, late + statuses.get("200", 0))


def _describe(values: list[float]) -> dict[str, float]:
    return {
        "median": round(median(values), 3),
        "least": round(min(values), 3),
        "greatest": round(max(values), 3),
    }


if __name__ == "__main__":
    sys.exit(main())
