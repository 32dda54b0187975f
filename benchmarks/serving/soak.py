"""Memory over a long run: models that come and go, and images that are none.

    python -m benchmarks.serving.soak --minutes 10

One service whose bank holds a quarter of the models that are asked for, so that it loads and evicts
all the time. In turns come a closed loop of images, models drawn by Zipf's law, a burst of images
cut short, and a burst of clients that go away. After each turn the memory of the service's
processes is read. Printed is how much it grew from the second quarter of the run to the last: the
first one fills caches. Growth that goes on is a leak.
"""

import argparse
import json
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.serving.models import Stock, make_stock
from benchmarks.serving.systems import System, build_service

_NETWORK = "vit_tiny_patch16_224.augreg_in21k"
_COUNTERS = ("loads", "evictions")


def main() -> int:
    """Run, print what was found, append it to a file if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=10.0)
    add("--models", type=int, default=128)
    add("--precision", default="fp32", choices=("fp32", "bf16"))
    add("--seconds", type=float, default=15.0, help="of each closed loop")
    add("--bank-mib", type=int, default=8, help="memory for models")
    add("--out", type=Path, help="append one JSON line")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="idat-soak-"))
    try:
        row = _soak(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({key: value for key, value in row.items() if key != "turns"}, indent=2))
    if args.out is not None:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 0


def _soak(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    stock = Stock(folder / "stock", _NETWORK, args.models, 8, 100)
    for _ in make_stock(
        stock.folder, _NETWORK, stock.count, hidden_dim=8, classes=100, size=(500, 375)
    ):
        pass
    broken = _cut_short(stock, folder / "broken")
    service = build_service(stock, stock.count, folder / "data", precision=args.precision)
    service.environment["IDAT_INFERENCE_BANK_BYTES"] = str(args.bank_mib << 20)
    turns: list[dict[str, Any]] = []
    ends_s = time.monotonic() + 60 * args.minutes
    with service:
        while time.monotonic() < ends_s:
            seed = len(turns)
            good = service.load(service.plan(stock, seconds=args.seconds, zipf=1.0, seed=seed))
            bad = service.load(service.plan(stock, seconds=2.0, images=str(broken), seed=seed))
            _go_away(service, stock.images()[0], times=20)
            turn = {
                "pss_mib": round(service.rss_bytes() / 2**20, 1),
                "good": good["statuses"],
                "bad": bad["statuses"],
                **_read_counters(service),
            }
            turns.append(turn)
            print(json.dumps(turn), file=sys.stderr, flush=True)
    quarter = max(1, len(turns) // 4)
    early, late = turns[quarter : 2 * quarter] or turns, turns[-quarter:]
    before, after = (mean(turn["pss_mib"] for turn in some) for some in (early, late))
    return {
        "benchmark": "soak",
        **describe_machine(),
        "network": _NETWORK,
        "precision": args.precision,
        "minutes": args.minutes,
        "requests": sum(sum(turn[kind].values()) for turn in turns for kind in ("good", "bad")),
        **{name: turns[-1][name] for name in _COUNTERS},
        "second_quarter_pss_mib": round(before, 1),
        "last_quarter_pss_mib": round(after, 1),
        "grew_by": round(after / before - 1.0, 4),
        "turns": turns,
    }


def _cut_short(stock: Stock, folder: Path) -> Path:
    folder.mkdir()
    for index, image in enumerate(stock.images()):
        (folder / f"{index}.jpg").write_bytes(image[: len(image) // 3])
    return folder


def _go_away(service: System, image: bytes, *, times: int) -> None:
    """Send whole requests and half ones, and wait for no answer."""
    path = service.path.format(model=service.names[0])
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\n"
        f"Content-Length: {len(image)}\r\n\r\n"
    ).encode()
    for number in range(times):
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
            connection.sendall(head + (image if number % 2 else image[: len(image) // 2]))


def _read_counters(service: System) -> dict[str, int]:
    """Return how many models the service has loaded and evicted so far."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: int(float(values[f"idat_model_{name}_total"])) for name in _COUNTERS}


if __name__ == "__main__":
    sys.exit(main())
