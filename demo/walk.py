"""The steps of the demo, in order: upload, train, look at the model, classify."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from core.clock import monotonic_s
from demo.client import Client, DemoError, Json
from demo.digits import DigitsArchive
from demo.progress import TrainingProgress

_POLL_S = 0.5
_STALL_S = 600.0
_TOP_K = 3
_SPLITS = ("train", "val", "test")
_DATASET_ENDS = {"ready", "invalid", "failed"}
_JOB_ENDS = {"succeeded", "failed", "cancelled"}


@dataclass(frozen=True)
class Walk:
    """One walk through the service.

    Attributes:
        client: the service.
        console: where to tell about it.
        folder: for downloaded files.
    """

    client: Client
    console: Console
    folder: Path

    def upload(self, digits: DigitsArchive) -> str:
        """Upload the archive and wait until it is a dataset; return the dataset's id.

        Raises:
            DemoError: the archive was refused.
        """
        size_kb = digits.path.stat().st_size / 1000
        self._step(
            f"Upload {digits.path.name}: {_describe_splits(digits.splits)}, {size_kb:.0f} kB"
        )
        self._curl("/v1/datasets", "-F", f"file=@{digits.path}", "-F", "name=digits")
        dataset_id = str(self.client.upload_dataset(digits.path, name="digits")["id"])
        self._curl(f"/v1/datasets/{dataset_id}")
        deadline = monotonic_s() + _STALL_S
        while (dataset := self.client.get_dataset(dataset_id))["status"] not in _DATASET_ENDS:
            if monotonic_s() > deadline:
                raise DemoError(f"{dataset_id} is still {dataset['status']}: does a worker run?")
            time.sleep(_POLL_S)
        if dataset["status"] != "ready":
            raise DemoError(f"the dataset is {dataset['status']}: {_explain(dataset['error'])}")
        if dataset["splits"] != digits.splits:
            raise DemoError(f"the dataset has {_describe_splits(dataset['splits'])}")
        self._say(
            f"{dataset_id} is ready: {len(dataset['classes'])} classes, "
            f"{_describe_splits(dataset['splits'])}"
        )
        return dataset_id

    def train(self, dataset_id: str, *, pair: str, epochs: int, seed: int) -> Json:
        """Train with iDAT; return the job, succeeded.

        Raises:
            DemoError: the job did not succeed.
        """
        request = {
            "dataset_id": dataset_id,
            "name": "digits",
            "seed": seed,
            "method": {"type": "idat", "pair": pair},
            "hyperparameters": {"epochs": epochs},
        }
        self._step(f"Train with iDAT: pair {pair}, {epochs} epochs")
        self._curl(
            "/v1/fine_tuning/jobs",
            "-H",
            "Content-Type: application/json",
            "-d",
            json.dumps(request),
        )
        job_id = str(self.client.submit_job(request)["id"])
        try:
            job = self._follow(job_id, epochs)
        except BaseException:
            self._abandon(job_id)
            raise
        if job["status"] != "succeeded":
            raise DemoError(f"job {job_id} {job['status']}: {_explain(job['error'])}")
        return job

    def show_model(self, job: Json) -> None:
        """Show what came out, and check that the downloaded adapter is what was published.

        Args:
            job: succeeded.

        Raises:
            DemoError: the file is not the published one.
        """
        self._step("Look at the model: the student's adapters and head, and nothing else")
        model_id = job["model_id"]
        self._curl(f"/v1/models/{model_id}")
        model = self.client.get_model(model_id)
        path = self.folder / "adapter.safetensors"
        self._curl(f"/v1/models/{model_id}/adapter", "-o", str(path))
        etag = self.client.download_adapter(model_id, path)
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if not sha256 == etag == model["adapter"]["sha256"]:
            raise DemoError(f"the downloaded adapter has SHA-256 {sha256}, its ETag says {etag}")
        metrics, trainable = model["metrics"], job["trainable_parameters"]["student"]
        self._say(
            f"test accuracy         {metrics['test_accuracy']:.2%} of {metrics['test_images']} "
            f"images, with epoch {metrics['best_epoch']}, the best on validation"
        )
        self._say(f"teacher's accuracy    {metrics['teacher_test_accuracy']:.2%}")
        self._say(
            f"trainable parameters  {trainable['total']:,} "
            f"({trainable['adapter']:,} in adapters, {trainable['head']:,} in the head)"
        )
        self._say(
            f"adapter file          {len(content):,} bytes, SHA-256 {sha256[:12]}… as published"
        )
        self._say(f"frozen backbone       {model['backbone']}, not in the file")

    def classify(self, model_id: str, digits: DigitsArchive) -> None:
        """Classify images that the training never saw.

        Raises:
            DemoError: most answers are wrong.
        """
        self._step("Classify images of the test split")
        image = digits.held_out[0].path
        self._curl(
            f"/v1/models/{model_id}/classify?top_k={_TOP_K}",
            "-H",
            "Content-Type: image/png",
            "--data-binary",
            f"@{image}",
        )
        right = 0
        for shown in digits.held_out:
            scores = self.client.classify(model_id, shown.path, top_k=_TOP_K)
            hit = scores[0]["label"] == shown.label
            right += hit
            listed = "   ".join(f"{score['label']} {score['score']:6.1%}" for score in scores)
            mark = "right" if hit else "WRONG"
            self._say(f"{shown.path.name} is a {shown.label}:  {listed}   {mark}")
        self._say(f"{right} of {len(digits.held_out)} right")
        if right * 2 < len(digits.held_out):
            raise DemoError("the model gets most images wrong")

    def _follow(self, job_id: str, epochs: int) -> Json:
        self._curl(f"/v1/fine_tuning/jobs/{job_id}")
        self._curl(f"/v1/fine_tuning/jobs/{job_id}/metrics")
        with TrainingProgress(self.console, epochs=epochs, clock=monotonic_s) as progress:
            seen, seen_s = None, monotonic_s()
            while True:
                # The job first: when it has ended, its last epoch is among the metrics.
                job = self.client.get_job(job_id)
                progress.update(job, self.client.list_metrics(job_id))
                if job["status"] in _JOB_ENDS:
                    return job
                if seen != (seen := (job["status"], job["progress"])):
                    seen_s = monotonic_s()
                elif monotonic_s() - seen_s > _STALL_S:
                    raise DemoError(f"{job_id} is {job['status']} and makes no progress")
                time.sleep(_POLL_S)

    def _abandon(self, job_id: str) -> None:
        """Stop a job that nobody waits for any more, on a service that goes on running."""
        try:
            self.client.cancel_job(job_id)
        except DemoError as error:
            self._say(f"{job_id} was not cancelled: {error}")

    def _step(self, title: str) -> None:
        self.console.print(f"\n[bold]{title}[/bold]", highlight=False)

    def _say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    def _curl(self, path: str, *arguments: str) -> None:
        line = self.client.curl(path, *arguments)
        self.console.print(
            f"  $ {line}", highlight=False, markup=False, soft_wrap=True, style="dim"
        )


def _describe_splits(splits: dict[str, int]) -> str:
    return ", ".join(f"{splits[split]} {split}" for split in _SPLITS if split in splits)


def _explain(error: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(error, dict):
        return f"{error.get('message', error)} ({error.get('code', 'no code')})"
    return str(error)
