"""Batch predictions through real processes: killed, cancelled, handed back, the same in the end."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Stack, wait_until
from tests.integration.api.models import build_files, build_picture, import_model
from tests.integration.predictions.rows import build_archive

PATH = "/v1/batch_predictions"
ENDED = {"succeeded", "failed", "cancelled"}
IMAGES = 3000


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """So many that a process can be met at work on them; one of them is none."""
    some = [build_picture(seed) for seed in range(8)]
    pictures = {f"{index:05d}.png": some[index % 8] for index in range(IMAGES)}
    return {**pictures, "00003.png": b"not a picture"}


def submit(stack: Stack, pictures: dict[str, bytes]) -> str:
    answer = stack.client.post(
        PATH,
        files={"file": ("pictures.zip", build_archive(pictures))},
        data={"model": "animals", "top_k": "2"},
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def get(stack: Stack, prediction_id: str) -> dict[str, Any]:
    return stack.get(f"{PATH}/{prediction_id}")


def wait_for_work(stack: Stack, prediction_id: str) -> None:
    """Wait until some images are answered for."""

    def is_at_work() -> bool:
        shown = get(stack, prediction_id)
        assert shown["status"] not in ENDED, shown
        return shown["progress"] is not None and shown["progress"]["images"] > 0

    wait_until(is_at_work, what=f"{prediction_id} to be worked on")


def wait_for_end(stack: Stack, prediction_id: str) -> dict[str, Any]:
    wait_until(
        lambda: get(stack, prediction_id)["status"] in ENDED,
        timeout_s=240,
        what=f"{prediction_id} to end",
    )
    return get(stack, prediction_id)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_disturbance_ends_in_the_same_lines(
    stack: Stack, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    import_model(stack.client, build_files(tmp_path))
    worker = stack.spawn("worker")

    killed = submit(stack, pictures)
    wait_for_work(stack, killed)
    for pid in stack.find_children("worker.predictor"):
        os.kill(pid, signal.SIGKILL)
    shown = wait_for_end(stack, killed)
    assert (shown["status"], shown["attempt"]) == ("succeeded", 2), shown
    assert shown["counts"] == {"predicted": IMAGES - 1, "rejected": 0, "failed": 1}
    digest = shown["results"]["sha256"]
    check_lines(stack, shown, pictures)

    orphaned = submit(stack, pictures)
    wait_for_work(stack, orphaned)
    for pid in (worker.pid, *stack.descendants(worker.pid)):
        os.kill(pid, signal.SIGKILL)
    worker.wait(timeout=30)
    wait_until(lambda: stack.find_children("worker.predictor") == [], what="no orphan to work on")
    stack.spawn("worker")
    shown = wait_for_end(stack, orphaned)
    assert (shown["status"], shown["attempt"]) == ("succeeded", 2), shown
    assert shown["results"]["sha256"] == digest

    cancelled = submit(stack, pictures)
    wait_for_work(stack, cancelled)
    answer = stack.client.post(f"{PATH}/{cancelled}/cancel")
    assert answer.json()["status"] == "cancelling"
    assert wait_for_end(stack, cancelled)["status"] == "cancelled"
    assert stack.find_children("worker.predictor") == []
    assert stack.client.get(f"{PATH}/{cancelled}/results").status_code == 409

    handed_back = submit(stack, pictures)
    wait_for_work(stack, handed_back)
    stack.end_workers()
    shown = get(stack, handed_back)
    assert (shown["status"], shown["attempt"], shown["error"]) == ("pending", 1, None)
    stack.spawn("worker")
    shown = wait_for_end(stack, handed_back)
    assert (shown["status"], shown["results"]["sha256"]) == ("succeeded", digest)
    stack.end_workers()


def check_lines(stack: Stack, shown: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """A line for each picture, in order, with the scores that `classify` gives."""
    data = stack.client.get(shown["results"]["url"]).content
    lines = [json.loads(line) for line in data.decode().splitlines()]
    assert [line["id"] for line in lines] == list(pictures)
    assert lines[3]["error"]["code"] == "unsupported_format"
    answer = stack.client.post(
        "/v1/models/animals/classify",
        params={"top_k": 2},
        content=pictures["00000.png"],
        headers={"content-type": "image/png"},
    )
    assert answer.status_code == 200, answer.text
    expected = answer.json()
    found = lines[0]["predictions"]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    scores = [one["score"] for one in found]
    # Where bf16 is what serves, batches of other sizes round otherwise.
    assert scores == pytest.approx([one["score"] for one in expected], abs=5e-3)
