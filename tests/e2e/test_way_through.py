"""Upload, training, export and prediction through real processes, and faults on the way.

One module, so that the stack of each kind starts once; the tests run in the order of the file.
"""

import hashlib
import io
import os
import signal
import time
import zipfile
from collections.abc import Iterator

import pytest
import safetensors.numpy

from tests.e2e.stack import LEASE_TTL_S, Stack, build_archive, wait_until

#: 30 training images in batches of 8 make 4 steps an epoch.
EPOCHS = 12
STEPS = 4 * EPOCHS


@pytest.fixture(scope="module")
def dataset_id(stack: Stack, archive: bytes) -> str:
    """The dataset of all tests."""
    return stack.upload(archive, name="gratings", seed="3")


@pytest.fixture(scope="module")
def undisturbed(stack: Stack, dataset_id: str) -> bytes:
    """The adapter of a job that nothing happened to."""
    worker = stack.spawn("worker")
    job = stack.wait_for_end(stack.submit(dataset_id, epochs=EPOCHS))
    assert job["status"] == "succeeded", job
    assert job["attempt"] == 1
    adapter = stack.download_adapter(job["model_id"])
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    return adapter


@pytest.fixture(autouse=True)
def no_worker_left(stack: Stack) -> Iterator[None]:
    """Every test starts its own workers, and leaves none behind whatever becomes of it."""
    yield
    stack.end_workers()


class TestWholeWay:
    def test_dataset_is_validated_and_split(
        self, stack: Stack, dataset_id: str, undisturbed: bytes
    ) -> None:
        dataset = stack.get(f"/v1/datasets/{dataset_id}")
        assert dataset["status"] == "ready"
        assert dataset["classes"] == ["grating0", "grating1", "grating2"]
        assert sum(dataset["splits"].values()) == 48
        assert all(dataset["splits"][split] > 0 for split in ("train", "val", "test"))

    def test_export_holds_student_adapters_and_head_only(self, undisturbed: bytes) -> None:
        tensors = safetensors.numpy.load(undisturbed)
        # Six blocks of width 192 with a bottleneck of 8, and a head of 3 classes.
        assert sum(t.size for t in tensors.values()) == 6 * (2 * 192 * 8 + 8 + 192) + 3 * (192 + 1)
        assert tensors["head.weight"].shape == (3, 192)

    def test_model_tells_its_figures(self, stack: Stack, undisturbed: bytes) -> None:
        model = stack.get("/v1/models/gratings")
        metrics = model["metrics"]
        assert 0.0 <= metrics["test_accuracy"] <= 1.0
        assert 0.0 <= metrics["teacher_test_accuracy"] <= 1.0
        epochs = stack.get(f"/v1/fine_tuning/jobs/{model['job_id']}/metrics")["data"]
        assert [row["epoch"] for row in epochs] == list(range(1, EPOCHS + 1))
        figures = [row["metrics"]["val_accuracy"] for row in epochs]
        best = max(figures)
        assert figures[metrics["best_epoch"] - 1] == best == metrics["val_accuracy"]

    def test_download_names_its_digest(self, stack: Stack, undisturbed: bytes) -> None:
        response = stack.client.get("/v1/models/gratings/adapter")
        assert response.headers["etag"].strip('"') == hashlib.sha256(undisturbed).hexdigest()

    def test_hosted_model_classifies(
        self, stack: Stack, archive: bytes, undisturbed: bytes
    ) -> None:
        with zipfile.ZipFile(io.BytesIO(archive)) as pictures:
            names = pictures.namelist()[::4]
            right = 0
            for name in names:
                answer = stack.client.post(
                    "/v1/models/gratings/classify?top_k=2",
                    content=pictures.read(name),
                    headers={"content-type": "image/png"},
                )
                assert answer.status_code == 200, answer.text
                first, second = answer.json()
                assert first["score"] >= second["score"]
                right += first["label"] == name.split("/")[0]
        # Chance is a third.
        assert right >= 0.7 * len(names)

    def test_dataset_with_a_broken_picture_fails_its_job(self, stack: Stack) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
                archive.writestr(name, b"\x89PNG\r\n\x1a\n but nothing follows")
        dataset_id = stack.upload(buffer.getvalue())
        job_id = stack.submit(dataset_id)
        stack.spawn("worker")
        job = stack.wait_for_end(job_id)
        dataset = stack.get(f"/v1/datasets/{dataset_id}")
        assert (dataset["status"], job["status"]) == ("invalid", "failed")
        assert job["error"]["code"] == "dataset_not_usable"
        report = stack.get(f"/v1/datasets/{dataset_id}/report")["report"]
        assert {issue["path"] for issue in report["errors"]} >= {"a/1.png", "b/2.png"}

    def test_broken_pictures_are_left_out_if_that_is_wanted(self, stack: Stack) -> None:
        buffer = io.BytesIO(build_archive(images=8))
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr("grating1/broken.png", b"\x89PNG\r\n\x1a\n but nothing follows")
        dataset_id = stack.upload(buffer.getvalue(), tolerance="0.05")
        stack.spawn("worker")
        wait_until(
            lambda: stack.get(f"/v1/datasets/{dataset_id}")["status"] in ("ready", "invalid"),
            what="the dataset to be validated",
        )
        dataset = stack.get(f"/v1/datasets/{dataset_id}")
        assert dataset["status"] == "ready", dataset["error"]
        assert sum(dataset["splits"].values()) == 24
        report = stack.get(f"/v1/datasets/{dataset_id}/report")["report"]
        assert [issue["path"] for issue in report["errors"]] == ["grating1/broken.png"]


class TestFaults:
    def test_killed_trainer_is_resumed_to_the_same_bytes(
        self, stack: Stack, dataset_id: str, undisturbed: bytes
    ) -> None:
        stack.spawn("worker")
        job_id = stack.submit(dataset_id, epochs=EPOCHS)
        stack.wait_for_step(job_id, STEPS // 3)
        (trainer,) = stack.find_children("worker.trainer")
        os.kill(trainer, signal.SIGKILL)
        job = stack.wait_for_end(job_id)
        assert job["status"] == "succeeded", job
        assert job["attempt"] == 2
        assert "attempt.lost" in stack.event_types(job_id)
        assert stack.download_adapter(job["model_id"]) == undisturbed

    def test_shutdown_hands_the_job_back_uncharged(
        self, stack: Stack, dataset_id: str, undisturbed: bytes
    ) -> None:
        worker = stack.spawn("worker")
        job_id = stack.submit(dataset_id, epochs=EPOCHS)
        stack.wait_for_step(job_id, STEPS // 4)
        os.killpg(
            worker.pid, signal.SIGTERM
        )  # as a container engine does: to all processes at once
        assert worker.wait(timeout=60) == 0
        stack.wait_for_no_trainer()
        assert stack.get_job(job_id)["status"] == "queued"
        assert "attempt.released" in stack.event_types(job_id)
        stack.spawn("worker")
        job = stack.wait_for_end(job_id)
        assert job["status"] == "succeeded", job
        assert stack.download_adapter(job["model_id"]) == undisturbed
        messages = [
            event["message"]
            for event in stack.get(f"/v1/fine_tuning/jobs/{job_id}/events?limit=100")["data"]
        ]
        assert any(message.startswith("resuming after step") for message in messages)

    def test_killed_worker_leaves_no_trainer_and_loses_no_job(
        self, stack: Stack, dataset_id: str, undisturbed: bytes
    ) -> None:
        worker = stack.spawn("worker")
        job_id = stack.submit(dataset_id, epochs=EPOCHS)
        stack.wait_for_step(job_id, STEPS // 2)
        worker.kill()
        worker.wait()
        stack.wait_for_no_trainer()
        stack.spawn("worker")
        job = stack.wait_for_end(job_id)
        assert job["status"] == "succeeded", job
        assert job["attempt"] == 2
        assert stack.download_adapter(job["model_id"]) == undisturbed

    def test_worker_that_slept_through_its_lease_publishes_nothing(
        self, stack: Stack, dataset_id: str, undisturbed: bytes
    ) -> None:
        sleeper = stack.spawn("worker")
        job_id = stack.submit(dataset_id, epochs=EPOCHS)
        stack.wait_for_step(job_id, STEPS // 3)
        frozen = [*stack.find_children("worker.trainer"), *stack.descendants(sleeper.pid)]
        for pid in (sleeper.pid, *frozen):
            os.kill(pid, signal.SIGSTOP)
        stack.spawn("worker")
        wait_until(
            lambda: stack.get_job(job_id)["attempt"] == 2,
            timeout_s=LEASE_TTL_S * 10,
            what="another worker to take the job over",
        )
        for pid in (sleeper.pid, *frozen):
            os.kill(pid, signal.SIGCONT)
        job = stack.wait_for_end(job_id)
        time.sleep(2)  # whatever the sleeper still wants to write, it has had the time
        assert stack.get_job(job_id) == job
        assert job["status"] == "succeeded", job
        assert job["attempt"] == 2
        assert stack.download_adapter(job["model_id"]) == undisturbed
        assert stack.event_types(job_id).count("job.succeeded") == 1

    def test_campaign_killed_twice_ends_with_the_same_model_and_figures(
        self, stack: Stack, dataset_id: str
    ) -> None:
        """Search, run and twin, of a kind that draws at random; killed in the search and after."""
        wanted = {
            "name": "campaign",
            "method": {"pair": "starter", "adapter": {"kind": "mosa"}},
            "hyperparameters": {
                "epochs": 6,
                "batch_size": 8,
                "precision": "fp32",
                "learning_rate": "auto",
            },
            "compare_baseline": True,
            "figures": ["learning_curves"],
        }
        stack.spawn("worker")
        calm = stack.wait_for_end(stack.submit(dataset_id, **wanted))
        assert calm["status"] == "succeeded", calm
        job_id = stack.submit(dataset_id, **wanted)
        search = 4 * 3 * 4  # rates, epochs, steps
        for step in (search // 2, 2 * search):
            stack.wait_for_step(job_id, step)
            (trainer,) = stack.find_children("worker.trainer")
            os.kill(trainer, signal.SIGKILL)
            wait_until(
                lambda dead=trainer: dead not in stack.find_children("worker.trainer"),
                what="the trainer to be gone",
            )
        job = stack.wait_for_end(job_id)
        assert job["status"] == "succeeded", job
        assert job["attempt"] == 3
        models = [stack.get(f"/v1/models/{ended['model_id']}") for ended in (calm, job)]
        assert models[0]["metrics"] == models[1]["metrics"]
        assert set(models[0]["metrics"]["learning_rate_search"]) == {"run", "baseline"}
        assert "gain" in models[0]["metrics"]["baseline"]
        for path in ("adapter", "evaluation"):
            first, second = (
                stack.client.get(f"/v1/models/{model['id']}/{path}").content for model in models
            )
            assert first == second

    def test_cancel_stops_the_trainer(self, stack: Stack, dataset_id: str) -> None:
        stack.spawn("worker")
        job_id = stack.submit(dataset_id, epochs=500)
        stack.wait_for_step(job_id, 2)
        response = stack.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        assert response.status_code == 200, response.text
        job = stack.wait_for_end(job_id, timeout_s=30)
        assert job["status"] == "cancelled"
        stack.wait_for_no_trainer()
        again = stack.client.post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")

    def test_job_without_weights_says_what_to_do(self, stack: Stack, dataset_id: str) -> None:
        stack.spawn("worker")
        method = {"type": "idat", "pair": "vit-s16-b16-in21k"}
        job = stack.wait_for_end(stack.submit(dataset_id, method=method))
        assert job["status"] == "failed"
        assert job["error"]["code"] == "weights_unavailable"
        assert "IDAT_WEIGHTS_DIR" in job["error"]["message"]
