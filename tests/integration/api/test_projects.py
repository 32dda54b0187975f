"""Nobody sees or changes anything of another project, on any route that there is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.projects import main
from core.settings import Settings
from tests.integration.api.models import build_files, import_model
from tests.integration.api.rig import Rig, build_zip

ALPHA, BETA = {"Authorization": "Bearer a-key"}, {"Authorization": "Bearer b-key"}
KEYS = "alpha:a-key,alpha:a-second,beta:b-key,plain"
JOB = {"method": {"type": "idat", "pair": "starter"}, "hyperparameters": {"epochs": 2}}

#: Routes without anything of a project in them; every other one is tried below.
OF_NOBODY = {
    "/healthz", "/readyz", "/metrics", "/health", "/ping", "/version", "/v2", "/v2/health/live",
    "/v2/health/ready", "/v1/fine_tuning/methods", "/v1/maintenance",
    "/v1/backbones/{backbone}/embeddings",
}  # fmt: skip
#: Routes that show or make what is the caller's own: lists, creations, and the project itself.
OWN = {
    ("get", "/v1/datasets"), ("post", "/v1/datasets"), ("get", "/v1/fine_tuning/jobs"),
    ("post", "/v1/fine_tuning/jobs"), ("get", "/v1/models"), ("post", "/v1/models:import"),
    ("get", "/v1/webhook_endpoints"), ("post", "/v1/webhook_endpoints"),
    ("get", "/v1/batch_predictions"), ("post", "/v1/batch_predictions"),
    ("get", "/v1/projects/current"), ("post", "/v2/repository/index"), ("post", "/invocations"),
}  # fmt: skip
#: Routes whose path names the caller's own, and whose body what may be another's: 422.
NAMED_IN_BODY = {("put", "/v1/models/{name}/aliases/{alias}")}
#: Bodies without which a route would not get as far as the id.
BODIES: dict[tuple[str, str], Any] = {
    ("patch", "/v1/fine_tuning/jobs/{job_id}"): {"priority": 1},
    ("put", "/v1/models/{name}/aliases/{alias}"): {"model_id": "{model}"},
    ("patch", "/v1/webhook_endpoints/{endpoint_id}"): {"description": "mine"},
}
_TENSOR = {"inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "data": [["AA=="]]}]}
_OPERATIONS = [
    (method, path)
    for path, operations in create_app(Settings()).openapi()["paths"].items()
    for method in operations
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture
def two(start_rig: Callable[..., Rig]) -> Rig:
    """An API of two projects, each with a key of its own."""
    return start_rig(api_keys=KEYS, roles=["control", "inference"], headers=ALPHA)


@pytest.fixture
def ids(two: Rig, folder: Path) -> dict[str, str]:
    """One thing of every kind that belongs to alpha, by the name that paths have for its id."""
    dataset_id = two.upload()
    two.finish_validation()
    job = two.client.post("/v1/fine_tuning/jobs", json={"dataset_id": dataset_id, **JOB})
    assert job.status_code == 201, job.text
    model_id = import_model(two.client, build_files(folder), name="animals")
    alias = two.client.put("/v1/models/animals/aliases/production", json={"model_id": model_id})
    assert alias.status_code in (200, 201), alias.text
    url = "https://93.184.216.34/hook"
    endpoint = two.client.post("/v1/webhook_endpoints", json={"url": url})
    form = {"file": ("pictures.zip", build_zip())}
    prediction = two.client.post(
        "/v1/batch_predictions", files=form, data={"model": "animals@production"}
    )
    assert prediction.status_code == 202, prediction.text
    return {
        "dataset_id": dataset_id,
        "batch_prediction_id": prediction.json()["id"],
        "job_id": job.json()["id"],
        "model": model_id,
        "name": "animals",
        "alias": "production",
        "endpoint_id": endpoint.json()["id"],
        "version": "1",
    }


def fill(path: str, values: dict[str, str]) -> str:
    return re.sub(r"{(\w+)}", lambda match: values[match[1]], path)


def ask(client: TestClient, method: str, path: str, body: Any, key: dict[str, str]) -> Any:
    if path.endswith(("/classify", "/embeddings")):
        headers = {**key, "content-type": "image/png"}
        return client.request(method, path, content=b"no image", headers=headers)
    if path.endswith("/infer"):
        body = _TENSOR
    return client.request(method, path, json=body, headers=key)


def tell(answer: httpx.Response, values: dict[str, str]) -> tuple[int, str]:
    """Status and body, with the ids and the request's own out of it."""
    text = answer.text
    for value in (*values.values(), answer.headers["x-request-id"]):
        text = text.replace(value, "ID") if len(value) > 4 else text
    return answer.status_code, text


class TestIsolation:
    @pytest.mark.parametrize(("method", "path"), _OPERATIONS)
    def test_every_route_is_known_here(self, method: str, path: str) -> None:
        """A new one must take an id of one of these kinds, or be named above with a reason."""
        names = set(re.findall(r"{(\w+)}", path))
        known = {"dataset_id", "job_id", "model", "name", "alias", "endpoint_id", "version"}
        known |= {"batch_prediction_id"}
        assert path in OF_NOBODY or (method, path) in OWN or (names and names <= known)

    def test_what_is_anothers_is_answered_like_what_is_not(
        self, two: Rig, ids: dict[str, str]
    ) -> None:
        unknown = {
            "dataset_id": "ds_" + "0" * 24,
            "job_id": "ftjob_" + "0" * 24,
            "model": "mdl_" + "0" * 24,
            "name": "unknown",
            "alias": "production",
            "endpoint_id": "whk_" + "0" * 24,
            "batch_prediction_id": "bp_" + "0" * 24,
            "version": "1",
        }
        before = self.picture(two, ids)
        tried = 0
        for method, path in _OPERATIONS:
            if path in OF_NOBODY or (method, path) in OWN:
                continue
            values, others = dict(ids), dict(unknown)
            if path.endswith("/figures/{name}"):
                values["name"] = others["name"] = "tsne"
            foreign, missing = (
                ask(two.client, method, fill(path, named), self.body(method, path, named), BETA)
                for named in (values, others)
            )
            assert tell(foreign, values) == tell(missing, others), (method, path)
            # A name has no aliases, whether or not there are models of it: an empty list.
            is_empty = foreign.status_code == 200 and foreign.json()["data"] == []
            is_refused = foreign.status_code == 404 or (method, path) in NAMED_IN_BODY
            assert is_refused or is_empty, (method, path, foreign.text)
            tried += 1
        assert tried > 30
        assert self.picture(two, ids) == before

    def body(self, method: str, path: str, named: dict[str, str]) -> Any:
        body = BODIES.get((method, path))
        return {"model_id": named["model"]} if body and "model_id" in body else body

    def picture(self, two: Rig, ids: dict[str, str]) -> list[Any]:
        """Everything that alpha has, as alpha sees it."""
        paths = [
            f"/v1/datasets/{ids['dataset_id']}",
            f"/v1/fine_tuning/jobs/{ids['job_id']}",
            f"/v1/fine_tuning/jobs/{ids['job_id']}/events",
            f"/v1/models/{ids['model']}",
            "/v1/models/animals/aliases/production",
            f"/v1/webhook_endpoints/{ids['endpoint_id']}",
            f"/v1/batch_predictions/{ids['batch_prediction_id']}",
        ]
        answers = [two.client.get(path) for path in paths]
        assert [answer.status_code for answer in answers] == [200] * len(paths)
        return [answer.json() for answer in answers]

    def test_lists_show_the_own_alone(self, two: Rig, ids: dict[str, str]) -> None:
        lists = [path for method, path in OWN if method == "get" and not path.endswith("current")]
        assert len(lists) == 5
        for path in lists:
            own = two.client.get(path).json()["data"]
            assert len(own) == 1, path
            assert two.client.get(path, headers=BETA).json()["data"] == []
            foreign = two.client.get(path, params={"after": own[0]["id"]}, headers=BETA)
            missing = two.client.get(path, params={"after": "unknown"}, headers=BETA)
            assert foreign.status_code == missing.status_code == 404, path
        index = two.client.post("/v2/repository/index", json={}, headers=BETA)
        assert index.json() == []

    def test_a_body_that_names_what_is_anothers(self, two: Rig, ids: dict[str, str]) -> None:
        jobs = "/v1/fine_tuning/jobs"
        for query in ("", "?dry_run=true"):
            answers = [
                two.client.post(jobs + query, json={"dataset_id": name, **JOB}, headers=BETA)
                for name in (ids["dataset_id"], "ds_unknown")
            ]
            told = [a.text.replace(ids["dataset_id"], "ds_unknown") for a in answers]
            told = [re.sub(r"req_\w+", "", text) for text in told]
            assert [answer.status_code for answer in answers] == [422, 422]
            assert told[0] == told[1]
            assert "dataset_not_found" in told[0]
        answer = two.client.post(
            "/invocations", params={"model": ids["model"]}, json={"inputs": []}, headers=BETA
        )
        assert answer.status_code == 404

    def test_a_name_means_the_own_model(self, two: Rig, ids: dict[str, str], folder: Path) -> None:
        own = two.client.post(
            "/v1/models:import",
            files=build_files(folder, seed=1).form(),
            data={"name": "animals"},
            headers=BETA,
        )
        assert own.json()["id"] != ids["model"]
        shown = [two.client.get("/v1/models/animals", headers=key) for key in (ALPHA, BETA)]
        assert [answer.json()["id"] for answer in shown] == [ids["model"], own.json()["id"]]

    def test_an_idempotency_key_meets_no_other_projects(self, two: Rig) -> None:
        answers = [
            two.client.post(
                "/v1/datasets",
                files={"file": ("flowers.zip", build_zip())},
                headers={**key, "Idempotency-Key": "first"},
            )
            for key in (ALPHA, BETA, ALPHA)
        ]
        ids = [answer.json()["id"] for answer in answers]
        assert ids[0] == ids[2] != ids[1]
        assert "idempotent-replayed" not in answers[1].headers

    def test_several_keys_open_one_project(self, two: Rig, ids: dict[str, str]) -> None:
        path = f"/v1/datasets/{ids['dataset_id']}"
        second = {"Authorization": "Bearer a-second"}
        assert two.client.get(path, headers=second).status_code == 200
        plain = {"Authorization": "Bearer plain"}
        assert two.client.get(path, headers=plain).status_code == 404
        shown = two.client.get("/v1/projects/current", headers=plain)
        assert shown.json()["name"] == "default"


class TestLimits:
    @pytest.fixture
    def capped(self, start_rig: Callable[..., Rig]) -> Rig:
        return start_rig(api_keys=KEYS, headers=ALPHA, max_queued_jobs=1, max_running_jobs=3)

    def test_the_project_shows_what_it_may_and_what_it_does(self, capped: Rig) -> None:
        body = {"dataset_id": capped.upload(), **JOB}
        assert capped.client.post("/v1/fine_tuning/jobs", json=body).status_code == 201
        assert capped.client.get("/v1/projects/current").json() == {
            "object": "project",
            "name": "alpha",
            "weight": 1.0,
            "max_running_jobs": 3,
            "max_queued_jobs": 1,
            "running": 0,
            "queued": 0,
            "waiting_for_dataset": 1,
        }
        again = capped.client.post("/v1/fine_tuning/jobs", json=body)
        assert (again.status_code, again.json()["code"]) == (429, "too_many_queued_jobs")
        assert int(again.headers["retry-after"]) >= 1
        dry = capped.client.post("/v1/fine_tuning/jobs?dry_run=true", json=body)
        assert dry.status_code == 200

    def test_the_operators_command_changes_it(
        self, capped: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("IDAT_DATA_DIR", str(capped.settings.data_dir))
        assert main(["set", "alpha", "--max-running", "7", "--weight", "2.5"]) == 0
        shown = capped.client.get("/v1/projects/current").json()
        assert (shown["max_running_jobs"], shown["weight"]) == (7, 2.5)
        assert main(["set", "alpha", "--max-running", "default"]) == 0
        assert capped.client.get("/v1/projects/current").json()["max_running_jobs"] == 3
        capsys.readouterr()
        assert main(["list"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[1].split() == ["alpha", "2.5", "any", "(default)", "0", "0", "0"]

    @pytest.mark.parametrize(
        "arguments",
        [
            ["set", "alpha"],
            ["set", "alpha", "--max-running", "many"],
            ["set", "alpha", "--weight", "0"],
            ["set", "No Slug", "--weight", "1"],
        ],
    )
    def test_the_command_refuses_nonsense_in_one_line(
        self,
        capped: Rig,
        arguments: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("IDAT_DATA_DIR", str(capped.settings.data_dir))
        assert main(arguments) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("idat projects: ")
        assert told.err.count("\n") == 1

    def test_a_job_says_what_it_needs_and_may_use(self, capped: Rig) -> None:
        body = {"dataset_id": capped.upload(), **JOB, "limits": {"max_seconds": 90.0}}
        capped.finish_validation()
        dry = capped.client.post("/v1/fine_tuning/jobs?dry_run=true", json=body).json()
        job = capped.client.post("/v1/fine_tuning/jobs", json=body).json()
        estimate = dry["estimate"]
        assert job["memory_bytes"] == estimate["memory_bytes"]
        parts = {k: v for k, v in estimate["basis"]["memory"].items() if k.endswith("_bytes")}
        assert sum(parts.values()) == estimate["memory_bytes"]
        assert (estimate["seconds"], estimate["basis"]["jobs"]) == (None, 0)
        assert job["max_seconds"] == 90.0
        wrong = {**body, "limits": {"max_seconds": 0}}
        assert capped.client.post("/v1/fine_tuning/jobs", json=wrong).status_code == 422
