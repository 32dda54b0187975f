"""Fill the table by submitting jobs to a running service, with nothing but its HTTP API."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.vtab.archive import SPLITS, write_archive
from benchmarks.vtab.client import Client, Json, RefusedError
from benchmarks.vtab.dataset import Dataset
from benchmarks.vtab.jobs import (
    build_request,
    check_settings,
    describe_model,
    explain,
    name_job,
)
from benchmarks.vtab.memory import Memory
from benchmarks.vtab.methods import Method
from benchmarks.vtab.protocols import DIVERGED, Cell
from benchmarks.vtab.results import ResultsFile
from benchmarks.vtab.runner import build_cells, describe_result, hold
from benchmarks.vtab.settings import Settings
from benchmarks.vtab.watch import Console, StopSignal, describe_seconds
from core.clock import monotonic_s, now_s
from core.errors import AppError, NotFoundError, UnavailableError

IN_SERVICE = "service"
NOTE = (
    "Trained by the service on train800 with one learning rate; val200 chose the epoch. There is "
    "no grid of rates and no refit on all 1,000 images: not to be mixed with in-process figures."
)
_POLL_S = 1.0
#: Errors of a job that its settings are to blame for.
_DIVERGED = frozenset({"diverged", "collapsed"})
_JOB_ENDS = ("succeeded", "failed", "cancelled")

Outcome = TypeVar("Outcome")


class JobFailedError(AppError):
    """A dataset or a job did not become what it should."""

    code = "job_failed"


class ServiceRunner:
    """Computes rows on a service."""

    def __init__(
        self,
        settings: Settings,
        *,
        url: str,
        api_key: str | None,
        work_dir: Path,
        wait_s: float,
        stop: StopSignal,
        console: Console,
    ) -> None:
        """Check that the service can do what the settings ask; nothing is sent yet.

        Args:
            settings: what was asked for.
            url: base URL of the service.
            api_key: bearer key; None where the service asks for none.
            work_dir: for archives, and for what was uploaded and submitted.
            wait_s: longest wait for one dataset or one job.
            stop: when to leave.
            console: where progress is shown.

        Raises:
            InvalidError: the service cannot.
        """
        self._settings = check_settings(settings)
        self._url, self._api_key = url, api_key
        self._work_dir, self._wait_s = work_dir, wait_s
        self._stop, self._console = stop, console
        self._failures: list[str] = []

    def run(
        self,
        datasets: Sequence[Dataset],
        methods: Sequence[Method],
        seeds: Sequence[int],
        results: ResultsFile,
    ) -> int:
        """Submit a job for every row that is not there yet; return how many rows were added.

        Jobs that this process does not live to see go on at the service; the next call finds them.

        Raises:
            JobFailedError: some jobs failed; the others' rows are in the file.
            UnavailableError: the service does not answer, or a wait was too long.
            TrainingStoppedError: that was asked for.
        """
        self._failures = []
        added = 0
        client = Client(self._url, api_key=self._api_key, check_stop=self._stop.check)
        with hold(self._work_dir), client:
            memory = Memory(self._work_dir / "service.json", client.url)
            for dataset in datasets:
                missing = [
                    cell
                    for cell in build_cells(dataset, methods, seeds)
                    if results.find(self._build_key(dataset, cell)) is None
                ]
                dataset_id = self._try(
                    dataset.recipe.code_name,
                    partial(self._prepare, client, memory, dataset) if missing else lambda: None,
                )
                if dataset_id is None:
                    continue
                # All are submitted before any is waited for: the service may have many workers.
                submitted = [
                    (cell, self._try(cell, partial(self._submit, client, memory, cell, dataset_id)))
                    for cell in missing
                ]
                for cell, job_id in submitted:
                    if job_id is None:
                        continue
                    row = self._try(
                        cell, partial(self._collect, client, memory, cell, dataset_id, job_id)
                    )
                    if row is not None:
                        results.append(self._build_key(dataset, cell) | row)
                        added += 1
                        self._console.say(f"{cell}: {describe_result(row)}")
        if self._failures:
            raise JobFailedError(
                "some rows are missing; the same command tries them again:\n"
                + "\n".join(self._failures)
            )
        return added

    def _try(self, what: object, step: Callable[[], Outcome | None]) -> Outcome | None:
        """Take a step of one row; if the service refuses it, note that and go on with others."""
        try:
            return step()
        except (JobFailedError, RefusedError, NotFoundError) as error:
            self._failures.append(f"{what}: {error.message}")
            self._console.say(f"{what}: {error.message}")
            return None

    def _prepare(self, client: Client, memory: Memory, dataset: Dataset) -> str:
        """Upload a dataset, unless it was; return its id when it is ready."""
        name = f"data-{dataset.digest[:40]}"
        archive = self._work_dir / "archives" / f"{dataset.recipe.folder}.zip"
        dataset_id = memory.find_id(name)
        if dataset_id is not None and not _exists(client, dataset_id):
            memory.forget(name)
            dataset_id = None
        if dataset_id is None:
            self._console.show(f"  packing {dataset.recipe.folder}")
            write_archive(dataset, archive, self._stop)
            self._console.say(
                f"uploading {dataset.recipe.folder}, {archive.stat().st_size / 1e6:.0f} MB"
            )
            created = client.upload_dataset(
                archive, name=dataset.recipe.name, key=memory.build_key(name)
            )
            dataset_id = str(created["id"])
            memory.remember(name, dataset_id)
            archive.unlink()
        ready = self._wait(
            dataset_id, lambda: client.get_dataset(dataset_id), ("ready", "invalid", "failed")
        )
        if ready["status"] != "ready":
            memory.forget(name)
            raise JobFailedError(f"the dataset is {ready['status']}: {explain(ready['error'])}")
        wanted = {split: len(dataset.lists[of].entries) for split, of in SPLITS.items()}
        if ready["splits"] != wanted:
            raise JobFailedError(f"the service counts {ready['splits']} images, not {wanted}")
        return dataset_id

    def _submit(self, client: Client, memory: Memory, cell: Cell, dataset_id: str) -> str:
        """Submit the job of a row, unless it was; return its id."""
        request = build_request(self._settings, cell, dataset_id)
        name = name_job(request)
        job_id = memory.find_id(name)
        if job_id is None:
            job_id = str(client.submit_job(request, key=memory.build_key(name))["id"])
            memory.remember(name, job_id)
        return job_id

    def _collect(
        self, client: Client, memory: Memory, cell: Cell, dataset_id: str, job_id: str
    ) -> dict[str, Any]:
        """Wait for a job; return what its row says."""
        name = name_job(build_request(self._settings, cell, dataset_id))
        try:
            job = self._wait(f"{cell}, {job_id}", lambda: client.get_job(job_id), _JOB_ENDS)
        except NotFoundError:
            memory.forget(name)
            raise
        described = {
            "group": cell.recipe.group.value,
            "num_classes": cell.num_classes,
            "spec": job["spec"],
            "service": {"url": client.url, "dataset_id": dataset_id, "job_id": job_id},
            "notes": [NOTE],
            "learning_rate": job["spec"]["learning_rate"],
            "weight_decay": job["spec"]["weight_decay"],
            "drop_path": job["spec"]["drop_path"],
            "finished_at": round(now_s()),
        }
        error = job["error"] or {}
        if error.get("code") in _DIVERGED:
            return described | {"status": DIVERGED, "error": explain(error), "test": None}
        if job["status"] != "succeeded":
            memory.forget(name)
            raise JobFailedError(f"job {job_id} {job['status']}: {explain(error)}")
        result = describe_model(client, job)
        known = result["classes_in_service"]
        if known != cell.num_classes:
            note = (
                f"{cell.recipe.code_name}: no image of {cell.num_classes - known} classes was "
                f"uploaded, so the service's head has {known} outputs."
            )
            described["notes"] = [NOTE, note]
        return described | result

    def _wait(self, what: str, ask: Callable[[], Json], ends: Sequence[str]) -> Json:
        """Ask until the thing has ended.

        Raises:
            UnavailableError: it takes longer than was allowed.
        """
        started_s = monotonic_s()
        while (seen := ask())["status"] not in ends:
            waited_s = monotonic_s() - started_s
            if waited_s > self._wait_s:
                raise UnavailableError(
                    f"{what} is still {seen['status']} after {describe_seconds(waited_s)}: does a "
                    "worker run? The same command goes on waiting; --wait-s waits longer"
                )
            progress = seen.get("progress") or {}
            left = progress.get("eta_s")
            self._console.show(
                f"  {what}: {seen['status']}"
                + (f", {progress['percent']:.0f} %" if progress.get("percent") else "")
                + (f", {describe_seconds(left)} left" if left else "")
            )
            self._stop.check()
            time.sleep(_POLL_S)
        return seen

    def _build_key(self, dataset: Dataset, cell: Cell) -> dict[str, Any]:
        settings = self._settings
        described = settings.describe(cell.method, settings.precision)
        del described["selection_seed"]  # nothing is selected
        described["learning_rates"] = (
            list(settings.learning_rates) if settings.learning_rates else {"recipe_times": [1.0]}
        )
        return {
            "dataset": cell.recipe.name,
            "method": cell.method.name,
            "seed": cell.seed,
            "mode": settings.mode.value,
            "where": IN_SERVICE,
            "settings": described,
            "data_digest": dataset.digest,
            "weights": None,  # the service's; the row says below what it used
        }


def _exists(client: Client, dataset_id: str) -> bool:
    try:
        client.get_dataset(dataset_id)
    except NotFoundError:
        return False
    return True
