"""Creating, watching and cancelling jobs."""

from typing import Any

import pytest

from core.catalog.backbones import list_backbones
from core.catalog.pairs import PAIRS
from core.platform.doorbell import TRAIN_TASK
from core.platform.jobs import attempts, claiming, events
from tests.integration.api.rig import Rig

_JOBS = "/v1/fine_tuning/jobs"


def _request(dataset_id: str, **changes: Any) -> dict[str, Any]:
    return {"dataset_id": dataset_id, "method": {"pair": "starter"}, **changes}


@pytest.fixture
def dataset_id(rig: Rig) -> str:
    """A dataset that is ready: 2 classes, 40 training images."""
    dataset_id = rig.upload(name="My flowers!")
    rig.finish_validation()
    return dataset_id


class TestCreate:
    def test_fills_every_default_in(self, rig: Rig, dataset_id: str) -> None:
        answer = rig.client.post(_JOBS, json=_request(dataset_id))
        assert answer.status_code == 201
        job = answer.json()
        defaults = PAIRS["starter"].defaults
        assert answer.headers["Location"] == f"{_JOBS}/{job['id']}"
        assert job["object"] == "fine_tuning.job"
        assert (job["status"], job["name"]) == ("queued", "My-flowers")
        assert job["spec"] == {
            "method": "idat",
            "pair": "starter",
            "student": PAIRS["starter"].student,
            "teacher": PAIRS["starter"].teacher,
            "adapter_kind": "parallel",
            "hidden_dim": defaults.hidden_dim,
            "scale": defaults.scale,
            "loss": "mse",
            "loss_weight": 1.0,
            "temperature": 5.0,
            "recipe": "default",
            "epochs": defaults.epochs,
            "warmup_epochs": defaults.epochs // 10,
            "batch_size": defaults.batch_size,
            "learning_rate": defaults.learning_rate,
            "weight_decay": defaults.weight_decay,
            "drop_path": 0.0,
            "precision": "auto",
            "seed": 0,
            "teacher_adapter_kind": None,
            "teacher_hidden_dim": None,
            "teacher_scale": None,
            "squared_temperature": False,
            "direction": "teacher_student",
            "detach_teacher": False,
            "layers": None,
            "tokens": "cls",
            "search_learning_rate": False,
            "compare_baseline": False,
            "seeds": 1,
            "figures": [],
        }
        assert job["progress"]["queue_position"] == 0
        assert isinstance(job["created_at"], int)
        assert rig.client.get(answer.headers["Location"]).json() == job

    def test_keeps_what_the_request_says(self, rig: Rig, dataset_id: str) -> None:
        wanted = _request(
            dataset_id,
            name="roses.v1",
            seed=9,
            metadata={"run": "a\nb", "who": "me"},
            method={
                "type": "idat",
                "student": "vit_base_patch16_224.augreg_in21k",
                "teacher": "vit_small_patch16_224.augreg_in21k",
                "adapter": {"kind": "sequential", "hidden_dim": 16, "scale": 0.5},
                "distillation": {"loss": "kl", "weight": 0.5, "temperature": 2},
            },
            hyperparameters={
                "epochs": 12,
                "batch_size": "auto",
                "learning_rate": 0.01,
                "weight_decay": 0,
                "drop_path": 0.1,
                "warmup_epochs": 2,
                "precision": "fp32",
                "augmentation": "none",
            },
        )
        job = rig.client.post(_JOBS, json=wanted).json()
        assert (job["name"], job["metadata"]) == ("roses.v1", {"run": "a\nb", "who": "me"})
        spec = job["spec"]
        assert (spec["adapter_kind"], spec["hidden_dim"], spec["scale"]) == ("sequential", 16, 0.5)
        assert (spec["loss"], spec["loss_weight"], spec["temperature"]) == ("kl", 0.5, 2.0)
        assert (spec["epochs"], spec["batch_size"], spec["warmup_epochs"]) == (12, 32, 2)
        assert (spec["weight_decay"], spec["drop_path"], spec["precision"]) == (0, 0.1, "fp32")
        assert (spec["pair"], spec["seed"]) == ("", 9)

    def test_the_official_recipe_fixes_its_schedule(self, rig: Rig) -> None:
        pending = rig.upload()
        wanted = _request(pending, recipe="official", method={"pair": "vit-s16-b16-in21k"})
        spec = rig.client.post(_JOBS, json=wanted).json()["spec"]
        assert (spec["epochs"], spec["batch_size"], spec["warmup_epochs"]) == (100, 64, 10)

    def test_waits_for_a_dataset_and_is_rung_for_only_when_queued(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rung: list[str] = []
        dataset_id = rig.upload()
        monkeypatch.setattr(rig.app.state.services.doorbell, "ring", rung.append)
        early = rig.client.post(_JOBS, json=_request(dataset_id)).json()
        assert (early["status"], rung) == ("validating_files", [])
        assert early["trainable_parameters"] is None
        rig.finish_validation()
        assert rig.client.get(f"{_JOBS}/{early['id']}").json()["status"] == "queued"
        late = rig.client.post(_JOBS, json=_request(dataset_id)).json()
        assert (late["progress"]["queue_position"], rung) == (1, [TRAIN_TASK])

    def test_a_dry_run_counts_and_creates_nothing(self, rig: Rig, dataset_id: str) -> None:
        wanted = _request(
            dataset_id,
            method={"pair": "vit-s16-b16-in21k", "adapter": {"hidden_dim": 4}},
            hyperparameters={"epochs": 10, "batch_size": 16},
        )
        answer = rig.client.post(f"{_JOBS}?dry_run=true", json=wanted)
        assert answer.status_code == 200
        estimate = answer.json()
        # The paper's figures for two classes (VTAB's patch_camelyon).
        counts = estimate["trainable_parameters"]
        assert counts["student"]["total"] == 84_530
        assert counts["teacher"]["total"] == 42_290
        assert counts["total"] == 126_820
        assert estimate["frozen_parameters"] == {"student": 85_798_656, "teacher": 21_665_664}
        assert estimate["steps"] == 10 * 3  # 40 images in batches of 16
        assert rig.count_rows() == {"datasets": 1}

    def test_a_dry_run_before_validation_leaves_the_counts_open(self, rig: Rig) -> None:
        answer = rig.client.post(f"{_JOBS}?dry_run=true", json=_request(rig.upload()))
        assert answer.json()["trainable_parameters"] is None
        assert answer.json()["steps"] is None


class TestIdempotency:
    def test_the_same_request_twice_makes_one_job(self, rig: Rig, dataset_id: str) -> None:
        headers = {"Idempotency-Key": "k"}
        first = rig.client.post(_JOBS, json=_request(dataset_id), headers=headers)
        spelled_out = _request(dataset_id, seed=0, metadata={})
        second = rig.client.post(_JOBS, json=spelled_out, headers=headers)
        assert (second.status_code, second.json()) == (201, first.json())
        assert second.headers["Idempotent-Replayed"] == "true"
        assert "Idempotent-Replayed" not in first.headers

    def test_another_request_with_the_key_is_refused(self, rig: Rig, dataset_id: str) -> None:
        headers = {"Idempotency-Key": "k"}
        rig.client.post(_JOBS, json=_request(dataset_id), headers=headers)
        answer = rig.client.post(_JOBS, json=_request(dataset_id, seed=1), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
        assert len(rig.client.get(_JOBS).json()["data"]) == 1

    def test_a_failed_request_does_not_spend_its_key(self, rig: Rig, dataset_id: str) -> None:
        headers = {"Idempotency-Key": "k"}
        assert rig.client.post(_JOBS, json=_request("ds_no"), headers=headers).status_code == 422
        answer = rig.client.post(_JOBS, json=_request(dataset_id), headers=headers)
        assert answer.status_code == 201

    def test_a_key_of_control_characters_is_refused(self, rig: Rig, dataset_id: str) -> None:
        headers = {"Idempotency-Key": "a\tb"}
        answer = rig.client.post(_JOBS, json=_request(dataset_id), headers=headers)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["in"] == "header"


@pytest.fixture
def job_id(rig: Rig, dataset_id: str) -> str:
    return str(rig.client.post(_JOBS, json=_request(dataset_id)).json()["id"])


class TestWatch:
    def test_shows_the_trainers_progress(self, rig: Rig, job_id: str) -> None:
        report = {
            "phase": "training",
            "epoch": 3,
            "total_epochs": 30,
            "step": 6,
            "total_steps": 60,
            "eta_s": 120.0,
            "val_accuracy": 0.5,
        }
        with rig.database.write() as session:
            claim = claiming.claim_job(session, owner="test", ttl_s=60)
            assert claim is not None
            attempts.report_progress(session, claim, ttl_s=60, progress=report)
        job = rig.client.get(f"{_JOBS}/{job_id}").json()
        progress = job["progress"]
        assert (job["status"], job["attempt"]) == ("running", 1)
        assert (progress["phase"], progress["epoch"], progress["total_epochs"]) == (
            "training",
            3,
            30,
        )
        assert progress["percent"] == 10.0
        assert progress["details"] == {"step": 6, "total_steps": 60, "val_accuracy": 0.5}
        assert progress["queue_position"] is None
        assert progress["estimated_finish"] >= job["started_at"] + 119

    def test_reads_events_in_pages(self, rig: Rig, job_id: str) -> None:
        with rig.database.write() as session:
            for index in range(4):
                events.add_event(session, job_id, f"line {index}", data={"index": index})
        first = rig.client.get(f"{_JOBS}/{job_id}/events?limit=2").json()
        assert [event["message"] for event in first["data"]] == ["job accepted", "line 0"]
        assert first["has_more"]
        last_id = first["data"][-1]["id"]
        rest = rig.client.get(f"{_JOBS}/{job_id}/events?after={last_id}").json()
        assert [event["data"]["index"] for event in rest["data"]] == [1, 2, 3]
        assert not rest["has_more"]
        newest = rig.client.get(f"{_JOBS}/{job_id}/events?order=desc&limit=1").json()
        assert newest["data"][0]["message"] == "line 3"

    def test_an_event_id_that_is_none_is_refused(self, rig: Rig, job_id: str) -> None:
        for after in ("ds_1", "evt_", "evt_x", "evt_" + "9" * 30):
            answer = rig.client.get(f"{_JOBS}/{job_id}/events?after={after}")
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["pointer"] == "/after"

    def test_reads_the_metrics_of_every_epoch(self, rig: Rig, job_id: str) -> None:
        with rig.database.write() as session:
            for epoch in (1, 0):
                events.record_epoch(session, job_id, epoch, {"val_accuracy": epoch / 2})
        listed = rig.client.get(f"{_JOBS}/{job_id}/metrics").json()
        assert [(e["epoch"], e["metrics"]) for e in listed["data"]] == [
            (0, {"val_accuracy": 0.0}),
            (1, {"val_accuracy": 0.5}),
        ]

    def test_lists_by_status(self, rig: Rig, job_id: str) -> None:
        assert [j["id"] for j in rig.client.get(f"{_JOBS}?status=queued").json()["data"]] == [
            job_id
        ]
        assert rig.client.get(f"{_JOBS}?status=failed").json()["data"] == []
        assert rig.client.get(f"{_JOBS}?status=lost").status_code == 422

    @pytest.mark.parametrize("path", ["", "/events", "/metrics"])
    def test_an_unknown_job_is_404(self, rig: Rig, path: str) -> None:
        answer = rig.client.get(f"{_JOBS}/ftjob_none{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


class TestCancel:
    def test_a_queued_job_ends_at_once_and_again_is_harmless(self, rig: Rig, job_id: str) -> None:
        for _ in range(2):
            answer = rig.client.post(f"{_JOBS}/{job_id}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")

    def test_a_running_job_is_asked_to_stop(self, rig: Rig, job_id: str) -> None:
        with rig.database.write() as session:
            claiming.claim_job(session, owner="test", ttl_s=60)
        answer = rig.client.post(f"{_JOBS}/{job_id}/cancel")
        assert answer.json()["status"] == "cancelling"

    def test_a_finished_job_is_409(self, rig: Rig, job_id: str) -> None:
        with rig.database.write() as session:
            claim = claiming.claim_job(session, owner="test", ttl_s=60)
            assert claim is not None
            attempts.fail(session, claim, {"code": "diverged", "message": "loss is not finite"})
        answer = rig.client.post(f"{_JOBS}/{job_id}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (409, "job_terminal")
        assert rig.client.get(f"{_JOBS}/{job_id}").json()["error"]["code"] == "diverged"

    def test_an_unknown_job_is_404(self, rig: Rig) -> None:
        assert rig.client.post(f"{_JOBS}/ftjob_none/cancel").status_code == 404


def test_methods_name_every_pair_with_its_defaults(rig: Rig) -> None:
    methods = rig.client.get("/v1/fine_tuning/methods").json()
    assert {pair["name"] for pair in methods["pairs"]} == set(PAIRS)
    starter = next(pair for pair in methods["pairs"] if pair["name"] == "starter")
    assert starter["defaults"]["epochs"] == PAIRS["starter"].defaults.epochs
    assert methods["recipes"]["official"]["batch_size"] == 64
    assert methods["limits"]["hyperparameters"]["epochs"] == {"minimum": 1, "maximum": 1000}
    assert {b["name"] for b in methods["backbones"]} == {b.name for b in list_backbones()}
