import hashlib
import io

import httpx
import pytest
from rich.console import Console

from demo.client import Client, DemoError
from demo.digits import DigitsArchive, HeldOutImage
from demo.walk import Walk

ADAPTER = b"adapter bytes"
SHA256 = hashlib.sha256(ADAPTER).hexdigest()
MODEL = {
    "id": "mdl_1",
    "backbone": "vit",
    "adapter": {"sha256": SHA256, "size_bytes": len(ADAPTER)},
    "metrics": {
        "test_accuracy": 0.9812,
        "test_images": 797,
        "best_epoch": 7,
        "teacher_test_accuracy": 0.97,
    },
}
JOB = {
    "id": "ftjob_1",
    "status": "succeeded",
    "model_id": "mdl_1",
    "progress": {"percent": 100.0},
    "error": None,
    "trainable_parameters": {"student": {"adapter": 1000, "head": 200, "total": 1200}},
}


class Service:
    """Answers by `METHOD path`; a list is a sequence of answers, its last one for ever."""

    def __init__(self, **answers):
        self.answers = {
            "GET /v1/fine_tuning/jobs/ftjob_1/metrics": {"data": []},
            "POST /v1/fine_tuning/jobs": {"id": "ftjob_1"},
            "POST /v1/fine_tuning/jobs/ftjob_1/cancel": {},
            **answers,
        }
        self.requests = []

    def __call__(self, request):
        route = f"{request.method} {request.url.path}"
        self.requests.append(route)
        answer = self.answers[route]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)


@pytest.fixture
def build_walk(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.walk._POLL_S", 0)

    def build(**answers):
        service = Service(**answers)
        client = Client("http://service", api_key=None, transport=httpx.MockTransport(service))
        screen = io.StringIO()
        walk = Walk(client, Console(file=screen, width=200), tmp_path)
        return walk, service, screen

    return build


def digits_in(folder, *labels):
    archive = folder / "digits.zip"
    archive.write_bytes(b"zip")
    images = []
    for number, label in enumerate(labels):
        path = folder / f"{number}.png"
        path.write_bytes(b"png")
        images.append(HeldOutImage(path, label))
    return DigitsArchive(archive, {"train": 2, "val": 1, "test": 1}, images)


def dataset(status, **fields):
    splits = {"test": 1, "train": 2, "val": 1}
    return {"id": "ds_1", "status": status, "classes": ["0"], "splits": splits, **fields}


class TestUpload:
    def test_waits_until_the_dataset_is_ready(self, build_walk, tmp_path):
        walk, service, _screen = build_walk(
            **{
                "POST /v1/datasets": dataset("pending"),
                "GET /v1/datasets/ds_1": [dataset("pending"), dataset("ready")],
            }
        )

        assert walk.upload(digits_in(tmp_path)) == "ds_1"
        assert service.requests.count("GET /v1/datasets/ds_1") == 2

    def test_tells_why_an_archive_is_invalid(self, build_walk, tmp_path):
        error = {"code": "one_class", "message": "only one class"}
        walk, _service, _screen = build_walk(
            **{
                "POST /v1/datasets": dataset("pending"),
                "GET /v1/datasets/ds_1": dataset("invalid", error=error),
            }
        )

        with pytest.raises(DemoError, match=r"invalid: only one class \(one_class\)"):
            walk.upload(digits_in(tmp_path))

    def test_fails_when_images_got_lost(self, build_walk, tmp_path):
        walk, _service, _screen = build_walk(
            **{
                "POST /v1/datasets": dataset("pending"),
                "GET /v1/datasets/ds_1": dataset("ready", splits={"train": 1}),
            }
        )

        with pytest.raises(DemoError, match="1 train"):
            walk.upload(digits_in(tmp_path))


class TestTrain:
    def test_tells_why_a_job_failed(self, build_walk):
        error = {"code": "diverged", "message": "the loss is not finite"}
        job = {**JOB, "status": "failed", "error": error}
        walk, _service, _screen = build_walk(**{"GET /v1/fine_tuning/jobs/ftjob_1": job})

        with pytest.raises(DemoError, match=r"ftjob_1 failed: the loss is not finite \(diverged\)"):
            walk.train("ds_1", pair="starter", epochs=2, seed=0)

    def test_cancels_the_job_when_it_is_interrupted(self, build_walk):
        walk, service, _screen = build_walk(
            **{"GET /v1/fine_tuning/jobs/ftjob_1": KeyboardInterrupt()}
        )

        with pytest.raises(KeyboardInterrupt):
            walk.train("ds_1", pair="starter", epochs=2, seed=0)
        assert service.requests[-1] == "POST /v1/fine_tuning/jobs/ftjob_1/cancel"


class TestShowModel:
    def test_shows_the_figures_of_the_model(self, build_walk):
        answer = httpx.Response(200, content=ADAPTER, headers={"ETag": f'"{SHA256}"'})
        walk, _service, screen = build_walk(
            **{"GET /v1/models/mdl_1": MODEL, "GET /v1/models/mdl_1/adapter": answer}
        )

        walk.show_model(JOB)

        assert "98.12% of 797 images, with epoch 7" in screen.getvalue()
        assert "1,200 (1,000 in adapters, 200 in the head)" in screen.getvalue()

    @pytest.mark.parametrize(
        ("content", "etag"), [(b"truncated", SHA256), (ADAPTER, "0" * 64)], ids=["bytes", "etag"]
    )
    def test_refuses_a_file_that_is_not_the_published_one(self, build_walk, content, etag):
        answer = httpx.Response(200, content=content, headers={"ETag": f'"{etag}"'})
        walk, _service, _screen = build_walk(
            **{"GET /v1/models/mdl_1": MODEL, "GET /v1/models/mdl_1/adapter": answer}
        )

        with pytest.raises(DemoError, match="SHA-256"):
            walk.show_model(JOB)


class TestClassify:
    def test_marks_right_and_wrong(self, build_walk, tmp_path):
        scores = [{"label": "7", "score": 0.9}, {"label": "1", "score": 0.1}]
        walk, _service, screen = build_walk(**{"POST /v1/models/mdl_1/classify": [scores]})

        walk.classify("mdl_1", digits_in(tmp_path, "7", "1", "7"))

        marks = [line.split()[-1] for line in screen.getvalue().splitlines() if ".png is a" in line]
        assert marks == ["right", "WRONG", "right"]
        assert "2 of 3 right" in screen.getvalue()

    def test_fails_when_most_answers_are_wrong(self, build_walk, tmp_path):
        scores = [{"label": "7", "score": 0.9}]
        walk, _service, _screen = build_walk(**{"POST /v1/models/mdl_1/classify": [scores]})

        with pytest.raises(DemoError, match="most images wrong"):
            walk.classify("mdl_1", digits_in(tmp_path, "1", "2", "7"))
