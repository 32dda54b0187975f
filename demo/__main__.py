"""`python -m demo`: train and serve handwritten digits, from upload to prediction.

Starts a service of its own on a free port and in a temporary folder, uploads a zip of real images
over HTTP, trains with iDAT, downloads the adapter and classifies images that the training never
saw. Every request is shown as a curl line.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from core.clock import monotonic_s
from demo.client import Client, DemoError
from demo.digits import build_digits
from demo.service import OwnStack, wait_until_ready
from demo.walk import Walk

EPOCHS = 12
TRAIN_IMAGES = 800
VAL_IMAGES = 200
HELD_OUT_IMAGES = 10
PAIR = "starter"
SEED = 0

_INTERRUPTED = 130
_POLL_S = 0.5


def main(arguments: list[str]) -> int:
    """Run the command line; return 0 only if every step worked."""
    options = _parse(arguments)
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end through the same clean-up
    started_s = monotonic_s()
    folder = Path(tempfile.mkdtemp(prefix="idat-demo-"))
    exit_code = 0
    try:
        _run(options, console, folder, started_s)
    except DemoError as error:
        console.print(
            f"\nThe demo failed: {error}", style="bold red", highlight=False, markup=False
        )
        console.print(f"Files and logs are kept in {folder}", highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        exit_code = _INTERRUPTED
    shutil.rmtree(folder, ignore_errors=True)
    return exit_code


def _run(options: argparse.Namespace, console: Console, folder: Path, started_s: float) -> None:
    if options.url:
        _walk(options, console, folder, options.url, stack=None)
        _praise(console, started_s)
        return
    stack = OwnStack(folder)
    console.print(f"Starting a service of its own in {folder}", soft_wrap=True, highlight=False)
    try:
        _walk(options, console, folder, stack.start(), stack=stack)
        _praise(console, started_s)
        if options.keep:
            _stay(console, stack)
        else:
            console.print("To repeat the curl lines, keep the service up: make demo ARGS=--keep")
    finally:
        stack.stop()


def _walk(
    options: argparse.Namespace,
    console: Console,
    folder: Path,
    url: str,
    *,
    stack: OwnStack | None,
) -> None:
    try:
        digits = build_digits(
            folder,
            train_images=options.train_images,
            val_images=options.val_images,
            held_out_images=HELD_OUT_IMAGES,
            seed=options.seed,
        )
    except ValueError as error:
        raise DemoError(str(error)) from error
    with Client(url, api_key=options.api_key) as client:
        wait_until_ready(client, stack)
        console.print(f"{url} is ready; its documentation: {url}/docs", highlight=False)
        walk = Walk(client, console, folder)
        dataset_id = walk.upload(digits)
        job = walk.train(dataset_id, pair=options.pair, epochs=options.epochs, seed=options.seed)
        walk.show_model(job)
        walk.classify(job["model_id"], digits)


def _praise(console: Console, started_s: float) -> None:
    console.print(f"\nEvery step worked, in {monotonic_s() - started_s:.0f} s.", highlight=False)


def _stay(console: Console, stack: OwnStack) -> None:
    console.print("The service stays up for the curl lines above; Ctrl-C stops it.")
    try:
        while True:
            stack.check_alive()
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        console.print("\nStopping.")


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default {EPOCHS}")
    parser.add_argument(
        "--train-images", type=int, default=TRAIN_IMAGES, help=f"default {TRAIN_IMAGES}"
    )
    parser.add_argument("--val-images", type=int, default=VAL_IMAGES, help=f"default {VAL_IMAGES}")
    parser.add_argument("--pair", default=PAIR, help=f"teacher and student, default {PAIR}")
    parser.add_argument("--seed", type=int, default=SEED, help=f"default {SEED}")
    parser.add_argument(
        "--keep", action="store_true", help="leave the service running until Ctrl-C"
    )
    parser.add_argument("--url", help="use the service that runs there instead of starting one")
    parser.add_argument("--api-key", help="bearer key for --url")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
