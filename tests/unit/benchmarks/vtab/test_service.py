"""Rows from a service: what is sent, what is read back, and what happens when something fails."""

import io
import json
import zipfile

import httpx
import pytest

from benchmarks.vtab.client import Client, RefusedError
from benchmarks.vtab.folder import check_root
from benchmarks.vtab.jobs import build_request
from benchmarks.vtab.methods import METHODS, find_methods
from benchmarks.vtab.options import build_parser, build_settings
from benchmarks.vtab.protocols import Cell
from benchmarks.vtab.results import ResultsFile
from benchmarks.vtab.service import JobFailedError, ServiceRunner
from benchmarks.vtab.watch import Console, StopSignal
from core.catalog.recipes import get_recipe
from core.errors import InvalidError, NotFoundError, UnavailableError
from core.ml.training.loop import TrainingStoppedError

KITTI = get_recipe("vtab-kitti")


def parse(*arguments):
    options = ["run", "x", "--out", "y", "--pair", "starter", *arguments]
    return build_settings(build_parser().parse_args(options))


class FakeService:
    """Answers like the service, from memory; every job ends at its second look."""

    def __init__(self):
        self.keys, self.uploads, self.jobs, self.looks = {}, [], {}, {}
        self.fail_jobs, self.away, self.refuse = [], 0, None

    def __call__(self, request):
        if self.away:
            self.away -= 1
            raise httpx.ConnectError("connection refused")
        path = request.url.path
        if request.method == "POST":
            key = request.headers["Idempotency-Key"]
            if key not in self.keys:
                response = self.create(request, path)
                if response.is_error:
                    return response
                self.keys[key] = response.json()
            return httpx.Response(201, json=self.keys[key])
        kind, _, rest = path.removeprefix("/v1/").partition("/")
        if kind == "datasets":
            return self.show_dataset(rest)
        if kind == "models":
            return self.show_model(rest)
        return self.show_job(rest.removeprefix("jobs/"))

    def create(self, request, path):
        if path == "/v1/datasets":
            body = request.read()
            start = body.index(b"PK\x03\x04")
            self.uploads.append(body[start:])
            return httpx.Response(202, json={"id": f"ds_{len(self.uploads)}"})
        if self.refuse is not None:
            return httpx.Response(
                422,
                json={
                    "detail": "no",
                    "errors": [{"pointer": "/method/adapter/kind", "message": self.refuse}],
                },
            )
        job_id = f"ftjob_{len(self.jobs) + 1}"
        self.jobs[job_id] = json.loads(request.read())
        return httpx.Response(201, json={"id": job_id})

    def show_dataset(self, dataset_id):
        if int(dataset_id.removeprefix("ds_")) > len(self.uploads):
            return httpx.Response(404, json={"detail": "there is no such dataset"})
        splits = {"train": 24, "val": 8, "test": 20}
        return httpx.Response(200, json={"id": dataset_id, "status": "ready", "splits": splits})

    def show_job(self, rest):
        job_id, _, part = rest.partition("/")
        if part == "metrics":
            rows = [{"metrics": {"val_accuracy": v}} for v in (0.25, 0.75, 0.5)]
            return httpx.Response(200, json={"data": rows})
        job = self.jobs[job_id]
        self.looks[job_id] = self.looks.get(job_id, 0) + 1
        shown = {
            "id": job_id,
            "status": "running" if self.looks[job_id] == 1 else "succeeded",
            "spec": job["hyperparameters"],
            "model_id": f"mdl_{job_id}",
            "error": None,
            "progress": {"percent": 50.0, "eta_s": 3.0},
            "trainable_parameters": {
                "student": {"adapter": 1, "head": 2, "total": 3},
                "teacher": None,
                "total": 3,
            },
            "started_at": 10,
            "finished_at": 15,
        }
        if self.fail_jobs and shown["status"] == "succeeded":
            error = self.fail_jobs.pop(0)
            if error is not None:
                shown |= {"status": "failed", "error": error}
        return httpx.Response(200, json=shown)

    def show_model(self, rest):
        model_id, _, part = rest.partition("/")
        if part == "config":
            return httpx.Response(
                200,
                json={
                    "backbone": {"weights_sha256": "s" * 64},
                    "recipe": {"precision": "fp32"},
                    "versions": {"torch": "2"},
                },
            )
        metrics = {
            "test_images": 20,
            "test_accuracy": 0.65,
            "teacher_test_accuracy": None,
            "best_epoch": 2,
            "val_accuracy": 0.75,
        }
        return httpx.Response(
            200, json={"id": model_id, "classes": ["0", "1", "2"], "metrics": metrics}
        )


@pytest.fixture
def service(monkeypatch):
    fake = FakeService()

    class Connected(Client):
        def __init__(self, url, **options):
            super().__init__(url, **options, patience_s=0.0, transport=httpx.MockTransport(fake))

    monkeypatch.setattr("benchmarks.vtab.service.Client", Connected)
    monkeypatch.setattr("benchmarks.vtab.service._POLL_S", 0.0)
    return fake


@pytest.fixture
def run(vtab_root, tmp_path, expected, service):
    """Return a function that fills KITTI's cells and returns the rows."""
    datasets = check_root(vtab_root, [KITTI], expected=expected)

    def call(*arguments, methods=("S",), seeds=(1,), stop=None, wait_s=60.0):
        runner = ServiceRunner(
            parse(*arguments),
            url="http://service",
            api_key=None,
            work_dir=tmp_path / "work",
            wait_s=wait_s,
            stop=stop or StopSignal(),
            console=Console(),
        )
        with ResultsFile(tmp_path / "results.jsonl") as results:
            runner.run(datasets, find_methods(methods), seeds, results)
            return results.rows

    return call


class TestRows:
    def test_uploads_once_and_submits_each(self, run, service):
        rows = run(methods=("S", "iDAT-P-mse"), seeds=(1, 2))
        assert len(service.uploads) == 1
        assert [(j["name"], j["seed"]) for j in service.jobs.values()] == [
            ("vtab-kitti-S-s1", 1),
            ("vtab-kitti-S-s2", 2),
            ("vtab-kitti-iDAT-P-mse-s1", 1),
            ("vtab-kitti-iDAT-P-mse-s2", 2),
        ]
        assert [(row["method"], row["seed"]) for row in rows] == [
            ("S", 1),
            ("S", 2),
            ("iDAT-P-mse", 1),
            ("iDAT-P-mse", 2),
        ]
        row = rows[0]
        assert (row["where"], row["mode"], row["status"]) == ("service", "strict", "ok")
        assert row["test"] == {
            "images": 20,
            "accuracy": 0.65,
            "last_epoch_accuracy": None,
            "teacher_accuracy": None,
            "chosen_epoch": 2,
            "val_accuracy": 0.75,
            "last_val_accuracy": 0.5,
        }
        assert row["service"] == {
            "url": "http://service",
            "dataset_id": "ds_1",
            "job_id": "ftjob_1",
        }
        assert row["settings"]["learning_rates"] == {"recipe_times": [1.0]}
        assert row["weights_used"] == {"student": "s" * 64}
        assert "no refit" in row["notes"][0]
        # Again: everything is there.
        assert run(methods=("S", "iDAT-P-mse"), seeds=(1, 2)) == rows
        assert (len(service.uploads), len(service.jobs)) == (1, 4)

    def test_the_archive_has_three_splits_of_label_folders(self, run, service, vtab_root):
        run()
        with zipfile.ZipFile(io.BytesIO(service.uploads[0])) as archive:
            names = archive.namelist()
            first = archive.read("test/1/000001.jpg")
        assert len(names) == 24 + 8 + 20
        assert {name.rsplit("/", 1)[0] for name in names} == {
            f"{split}/{label}" for split in ("train", "val", "test") for label in range(3)
        }
        image = vtab_root / "kitti" / "images" / "test" / "000001.jpg"
        assert first == image.read_bytes()


class TestRequest:
    def build(self, method, *arguments, recipe=KITTI):
        cell = Cell(recipe, METHODS[method], 7, recipe.num_classes)
        return build_request(parse(*arguments), cell, "ds_1")

    def test_official_schedule_with_the_recipes_settings(self):
        request = self.build("iDAT-PS-kl", recipe=get_recipe("vtab-eurosat"))
        assert request["recipe"] == "official"
        assert request["method"] == {
            "type": "idat",
            "pair": "starter",
            "adapter": {"kind": "parallel_shared", "hidden_dim": 4, "scale": 0.1},
            "distillation": {"loss": "kl", "weight": 1.0, "temperature": 5.0},
        }
        assert request["hyperparameters"] == {
            "learning_rate": 3e-3,
            "weight_decay": 5e-2,
            "drop_path": 0.2,
            "precision": "auto",
        }

    def test_other_epochs_are_the_services_own_schedule(self):
        request = self.build("S", "--epochs", "20", "--learning-rates", "0.02")
        assert request["recipe"] == "default"
        assert request["method"] == {
            "type": "adapter",
            "pair": "starter",
            "adapter": {"kind": "sequential", "hidden_dim": 4},
        }
        wanted = {"epochs": 20, "batch_size": 64, "warmup_epochs": 2, "learning_rate": 0.02}
        assert wanted.items() <= request["hyperparameters"].items()

    def test_the_probe_has_no_size(self):
        request = self.build("linear_probe")
        assert request["method"]["adapter"] == {"kind": "linear_probe"}

    @pytest.mark.parametrize("method", list(METHODS))
    def test_is_what_the_api_takes(self, method):
        """The real schema and the real resolution of defaults accept every request."""
        from api.job_requests.resolve import resolve  # noqa: PLC0415 - the one test that knows the API
        from api.schemas.jobs import JobRequest  # noqa: PLC0415

        for arguments in ((), ("--epochs", "20")):
            request = self.build(method, *arguments)
            spec = resolve(JobRequest.model_validate(request))
            assert spec.learning_rate == KITTI.learning_rate
            assert spec.student == "vit_starter_student_patch8_64"
            assert (spec.teacher is not None) == method.startswith("iDAT")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--mode", "paper"), "'paper' tests after every epoch"),
            (("--learning-rates", "0.1", "0.2"), "a job has one learning rate"),
            (("--tuning", "common"), "needs the one learning rate"),
        ],
    )
    def test_what_a_service_cannot_do(self, run, options, message):
        with pytest.raises(InvalidError, match=message):
            run(*options)


class TestFailures:
    def test_a_failed_job_is_told_and_tried_again(self, run, service, tmp_path):
        service.fail_jobs = [{"code": "out_of_memory", "message": "too large"}, None]
        with pytest.raises(JobFailedError, match=r"kitti S seed 1: .*too large \(out_of_memory\)"):
            run(seeds=(1, 2))
        lines = (tmp_path / "results.jsonl").read_text().splitlines()
        assert [json.loads(line)["seed"] for line in lines] == [2]
        rows = run(seeds=(1, 2))
        assert [row["seed"] for row in rows] == [2, 1]
        assert list(service.jobs) == ["ftjob_1", "ftjob_2", "ftjob_3"]

    def test_divergence_is_a_result(self, run, service):
        service.fail_jobs = [{"code": "diverged", "message": "no finite number"}]
        (row,) = run()
        assert (row["status"], row["test"]) == ("diverged", None)
        assert "no finite number" in row["error"]

    def test_a_refusal_names_the_field(self, run, service):
        service.refuse = "no such kind"
        with pytest.raises(JobFailedError, match="no; /method/adapter/kind: no such kind"):
            run()

    def test_stopping_loses_nothing(self, run, service):
        stop = StopSignal()
        seen = service.show_job

        def look(rest):
            stop.is_set = True
            return seen(rest)

        service.show_job = look
        with pytest.raises(TrainingStoppedError):
            run(stop=stop)
        service.show_job = seen
        assert len(run()) == 1
        assert (len(service.uploads), len(service.jobs)) == (1, 1)

    def test_lost_memory_finds_the_same_job(self, run, service, tmp_path):
        run()
        (tmp_path / "work" / "service.json").unlink()
        (tmp_path / "results.jsonl").unlink()
        run()
        assert (len(service.uploads), len(service.jobs)) == (1, 1)

    def test_a_service_that_lost_its_data(self, run, service, tmp_path):
        run()
        service.uploads.clear()
        (tmp_path / "results.jsonl").unlink()
        run()
        assert len(service.uploads) == 1
        assert len(service.jobs) == 1  # its dataset has the id that the first one had

    def test_a_wait_is_bounded(self, run, service):
        with pytest.raises(UnavailableError, match="is still running after 0 s: does a worker"):
            run(wait_s=-1)
        assert len(run()) == 1

    def test_splits_that_are_not_ours(self, run, service):
        service.show_dataset = lambda _id: httpx.Response(
            200, json={"status": "ready", "splits": {"train": 32, "test": 20}}
        )
        with pytest.raises(JobFailedError, match="the service counts"):
            run()


class TestClient:
    def build(self, handler, patience_s=5.0):
        return Client(
            "http://service/",
            api_key="secret",
            check_stop=lambda: None,
            patience_s=patience_s,
            transport=httpx.MockTransport(handler),
        )

    def test_asks_again_while_the_service_is_away(self):
        answers = [httpx.ConnectError("refused"), httpx.Response(503), {"id": "ds_1"}]

        def handler(request):
            assert request.headers["Authorization"] == "Bearer secret"
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return (
                answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)
            )

        with self.build(handler) as client:
            assert client.get_dataset("ds_1") == {"id": "ds_1"}

    def test_gives_up(self):
        with (
            self.build(lambda _: httpx.Response(503, json={"detail": "starting"}), 0.0) as client,
            pytest.raises(UnavailableError, match=r"http://service got no answer .*503: starting"),
        ):
            client.get_dataset("ds_1")

    @pytest.mark.parametrize(
        ("response", "error"),
        [
            (httpx.Response(404, json={"detail": "gone"}), NotFoundError),
            (httpx.Response(401, json={"detail": "no key"}), RefusedError),
            (httpx.Response(500, text="<html>"), RefusedError),
            (httpx.Response(200, text="<html>"), RefusedError),
        ],
    )
    def test_other_answers(self, response, error):
        with self.build(lambda _: response) as client, pytest.raises(error):
            client.get_job("ftjob_1")
