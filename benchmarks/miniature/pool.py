"""Run jobs in processes of one thread each, and stop them all in order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import connection
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from benchmarks.miniature.jobs import Job
from benchmarks.miniature.measure import measure
from benchmarks.miniature.rows import Row
from core.ml.training.loop import TrainingStoppedError


class _Worker:
    """What a worker process knows beside its jobs."""

    stop: Event | None = None
    cifar: Path | None = None


def run_jobs(
    jobs: Sequence[Job], *, workers: int, cifar: Path | None
) -> Generator[Row, None, None]:
    """Yield the row of every job as soon as it is known, started in the order given.

    Closing the iterator, or an exception in it, stops the workers within a training step (a linear
    probe and an evaluation are waited for). Workers die with this process, however it ends.
    """
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    executor = ProcessPoolExecutor(
        max_workers=min(workers, len(jobs)) or 1,
        mp_context=context,
        initializer=_start_worker,
        initargs=(stop, cifar),
    )
    futures: list[Future[Row | None]] = []
    try:
        futures += [executor.submit(_run, job) for job in jobs]
        for future in as_completed(futures):
            row = future.result()
            if row is not None:
                yield row
    finally:
        stop.set()
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(stop: Event, cifar: Path | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent alone decides
    torch.set_num_threads(1)
    _Worker.stop, _Worker.cifar = stop, cifar
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a worker"
    connection.wait([parent.sentinel])
    os._exit(1)  # nothing of a worker needs to be put away


def _run(job: Job) -> Row | None:
    """Return the job's row, or None if the benchmark was stopped."""
    stop = _Worker.stop
    assert stop is not None, "set when the worker starts"
    if stop.is_set():
        return None
    try:
        return measure(job, cifar=_Worker.cifar, should_stop=stop.is_set)
    except TrainingStoppedError:
        return None
