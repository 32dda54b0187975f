"""Evaluation and all figures of a job, through real processes and over real HTTP."""

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from api.schemas.evaluation import Evaluation
from core.catalog.figures import FIGURES
from tests.e2e.stack import Stack, build_archive


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("figures"))
    try:
        stack.start()
        stack.spawn("worker")
        yield stack
        stack.end_workers()
    finally:
        stack.stop()


@pytest.fixture(scope="module")
def job(own_stack: Stack) -> dict[str, Any]:
    """A job that asked for everything."""
    names = [name.value for name in FIGURES]
    dataset_id = own_stack.upload(build_archive(images=28))  # enough to test on for t-SNE
    job_id = own_stack.submit(dataset_id, epochs=2, figures=names, compare_baseline=True)
    job = own_stack.wait_for_end(job_id)
    assert job["status"] == "succeeded", job
    return job


def test_the_evaluation_agrees_with_the_model(own_stack: Stack, job: dict[str, Any]) -> None:
    model = own_stack.get(f"/v1/models/{job['model_id']}")
    answer = own_stack.client.get(f"/v1/models/{job['model_id']}/evaluation")
    evaluation = Evaluation.model_validate_json(answer.content)
    metrics = model["metrics"]
    assert evaluation.split == "test"
    assert evaluation.images == metrics["test_images"]
    assert evaluation.top1_accuracy == pytest.approx(metrics["test_accuracy"], rel=1e-5)
    assert evaluation.loss == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert evaluation.classes == model["classes"]
    assert evaluation.teacher is not None
    assert evaluation.baseline is not None


def test_every_figure_can_be_fetched_in_both_forms(own_stack: Stack, job: dict[str, Any]) -> None:
    listed = own_stack.get(f"/v1/models/{job['model_id']}/figures")["data"]
    assert [figure["name"] for figure in listed] == [name.value for name in FIGURES]
    for figure in listed:
        assert figure["status"] == "ready", figure
        document = own_stack.get(figure["links"]["json"])
        assert (document["name"], document["status"]) == (figure["name"], "ready")
        picture = own_stack.client.get(figure["links"]["png"])
        assert picture.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(picture.content)) as image:
            image.load()
            assert min(image.size) > 300


def test_the_job_keeps_where_training_stood(own_stack: Stack, job: dict[str, Any]) -> None:
    assert job["progress"]["percent"] == 100
    assert job["progress"]["epoch"] == job["progress"]["total_epochs"]
    assert job["spec"]["figures"] == [{"name": name.value} for name in FIGURES]
    levels = {
        event["level"]
        for event in own_stack.get(f"/v1/fine_tuning/jobs/{job['id']}/events?limit=100")["data"]
    }
    assert levels == {"info"}
