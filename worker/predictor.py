"""The predictor process: a model's answers to many images. `python -m worker.predictor <workdir>`.

Reads `request.json` and leaves `results.jsonl`, a line for each image in the order of the archive
or of the dataset. Threads decode ahead while another one runs the network. The batches are cut by
that order and by nothing else, so that every attempt on a machine writes the same bytes.

It talks to its supervisor as `worker.child` says. It opens what strangers uploaded, so that it runs
with a cap on its memory where the device lets it.
"""

import errno
import logging
import resource
import sys
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from core.errors import AppError, InvalidError
from core.ml.backbones.precision import resolve_device, resolve_precision
from core.ml.export.bundle import parse_bundle
from core.ml.inference.engine import Engine, Output, Resident
from core.ml.inference.scores import OutputFunction
from core.platform.predictions.parameters import Parameters
from worker.child import listen_for_stop, read_request, send, send_failure
from worker.prediction_images import Picture, PictureProgress, read_pictures_of
from worker.prediction_lines import LineWriter

RESULTS_FILE = "results.jsonl"

#: Address space of the interpreter, the libraries and a large network; images come on top.
_BASE_MEMORY_BYTES = 24 * 2**30
#: As in `worker.intake`.
_BYTES_PER_PIXEL = 24


class PredictionStoppedError(Exception):
    """The supervisor asked to stop; the next attempt starts over."""


def run(request: dict[str, Any], workdir: Path, stop: threading.Event) -> dict[str, int]:
    """Answer for every image and write the lines.

    Returns:
        Lines by kind: predicted, rejected, failed.

    Raises:
        AppError: for a reason that another attempt would meet again.
        PredictionStoppedError: when `stop` was set on the way.
    """
    progress = PictureProgress(request["images"])
    progress.tell(0)
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    device = resolve_device(request["device"])
    if device.type == "cpu":
        _limit_memory(request)
    engine = Engine(
        device=device,
        precision=resolve_precision(request["precision"], device),
        weights_dir=Path(request["weights_dir"]) if request["weights_dir"] else None,
        max_batch=request["max_batch"],
    )
    adapter, config = Path(request["adapter"]), Path(request["config"])
    resident = engine.admit(parse_bundle(adapter.read_bytes(), config.read_bytes()))
    parameters = Parameters.from_json(request["parameters"])
    with (workdir / RESULTS_FILE).open("wb") as file:
        writer = LineWriter(
            file,
            classes=resident.classes,
            top_k=parameters.top_k,
            function=OutputFunction(parameters.function_to_apply),
            threshold=parameters.threshold,
        )
        pictures = read_pictures_of(request, workdir, resident, progress, stop)
        done = 0
        with closing(pictures), closing(_answer(engine, resident, pictures, request)) as answers:
            for batch, outputs in answers:
                writer.write(batch, outputs)
                done += len(batch)
                progress.tell(done)
                if stop.is_set():
                    raise PredictionStoppedError
    if stop.is_set() and done < request["images"]:
        raise PredictionStoppedError
    return writer.counts


def _answer(
    engine: Engine, resident: Resident, pictures: Iterator[Picture], request: dict[str, Any]
) -> Generator[tuple[list[Picture], list[Output]], None, None]:
    """Yield batches with the answers to their sound images; one batch is gathered meanwhile."""

    def forward(batch: list[Picture]) -> list[Output]:
        pixels = [picture.pixels for picture in batch if picture.pixels is not None]
        return engine.forward([resident] * len(pixels), pixels) if pixels else []

    under_way: tuple[list[Picture], Future[list[Output]]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="network") as network:
        for batch in _cut(pictures, request["max_batch"]):
            future = network.submit(forward, batch)
            if under_way is not None:
                yield under_way[0], under_way[1].result()
            under_way = batch, future
        if under_way is not None:
            yield under_way[0], under_way[1].result()


def _cut(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    batch: list[Picture] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _limit_memory(request: dict[str, Any]) -> None:
    """Cap the address space, so that no image can take the host's memory.

    Not where a GPU's driver maps more addresses than any cap would leave.
    """
    images = (request["decode_threads"] or 8) * (
        _BYTES_PER_PIXEL * request["max_image_pixels"] + 4 * request["max_image_bytes"]
    )
    wanted = _BASE_MEMORY_BYTES + images
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))


def main() -> int:
    """Run the request of the working folder named on the command line."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    workdir = Path(sys.argv[1])
    stop = listen_for_stop()
    try:
        counts = run(read_request(workdir), workdir, stop)
    except PredictionStoppedError:
        send({"type": "stopped"})
    except AppError as error:
        send_failure(error.code, error.message, user=isinstance(error, InvalidError))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        send_failure("storage_full", "The disk of the worker is full.", user=False)
    else:
        send({"type": "done", "counts": counts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
