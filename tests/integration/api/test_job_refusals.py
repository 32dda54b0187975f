"""Jobs that are refused: what is wrong, where, and that nothing is left behind."""

import json
from typing import Any

import pytest

from core.catalog.pairs import PAIRS
from core.types import DatasetState
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


_BAD_BODIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown pair": ({"method": {"pair": "vit-x"}}, "/method/pair", "unknown_pair"),
    "no networks": ({"method": {}}, "/method/pair", "required"),
    "no method": ({"method": None}, "/method", "invalid"),
    "unknown method": ({"method": {"type": "lora", "pair": "starter"}}, "/method/type", ""),
    "unknown student": (
        {"method": {"type": "adapter", "student": "resnet50"}},
        "/method/student",
        "unknown_backbone",
    ),
    "a URL as teacher": (
        {
            "method": {
                "student": "vit_base_patch16_224.augreg_in21k",
                "teacher": "https://example.org/w.bin",
            }
        },
        "/method/teacher",
        "unknown_backbone",
    ),
    "a path as student": (
        {"method": {"type": "adapter", "student": "../../etc/passwd"}},
        "/method/student",
        "unknown_backbone",
    ),
    "no teacher": (
        {"method": {"student": "vit_base_patch16_224.augreg_in21k"}},
        "/method/teacher",
        "required",
    ),
    "pair and student": (
        {"method": {"pair": "starter", "student": "vit_base_patch16_224.augreg_in21k"}},
        "/method/student",
        "not_allowed",
    ),
    "distillation alone": (
        {"method": {"type": "adapter", "pair": "starter", "distillation": {}}},
        "/method/distillation",
        "not_allowed",
    ),
    "unknown kind": ({"method": {"pair": "starter", "adapter": {"kind": "prefix"}}}, "", ""),
    "wide adapter": (
        {"method": {"pair": "starter", "adapter": {"hidden_dim": 97}}},
        "/method/adapter/hidden_dim",
        "out_of_range",
    ),
    "official with epochs": (
        {"recipe": "official", "hyperparameters": {"epochs": 5}},
        "/hyperparameters/epochs",
        "recipe_conflict",
    ),
    "official with too few images": ({"recipe": "official"}, "/recipe", "dataset_too_small"),
    "unknown recipe": ({"recipe": "secret"}, "/recipe", "unknown_recipe"),
    "warm-up over the end": (
        {"hyperparameters": {"epochs": 2, "warmup_epochs": 3}},
        "/hyperparameters/warmup_epochs",
        "out_of_range",
    ),
    "too many epochs": (
        {"hyperparameters": {"epochs": 10**9}},
        "/hyperparameters/epochs",
        "out_of_range",
    ),
    "no epochs": ({"hyperparameters": {"epochs": 0}}, "/hyperparameters/epochs", "out_of_range"),
    "epochs as text": ({"hyperparameters": {"epochs": "9"}}, "/hyperparameters/epochs", ""),
    "epochs as truth": ({"hyperparameters": {"epochs": True}}, "/hyperparameters/epochs", ""),
    "half a batch": ({"hyperparameters": {"batch_size": 1.5}}, "/hyperparameters/batch_size", ""),
    "rate of zero": (
        {"hyperparameters": {"learning_rate": 0}},
        "/hyperparameters/learning_rate",
        "",
    ),
    "negative decay": (
        {"hyperparameters": {"weight_decay": -1e-3}},
        "/hyperparameters/weight_decay",
        "out_of_range",
    ),
    "temperature of zero": (
        {"method": {"pair": "starter", "distillation": {"temperature": 0}}},
        "/method/distillation/temperature",
        "out_of_range",
    ),
    "unknown field": ({"tenant_id": "t_1"}, "/tenant_id", "unknown_field"),
    "a state of its own": ({"state": "succeeded"}, "/state", "unknown_field"),
    "unknown hyperparameter": (
        {"hyperparameters": {"n_epochs": 3}},
        "/hyperparameters/n_epochs",
        "unknown_field",
    ),
    "a name with a slash": ({"name": "a/b"}, "/name", "bad_format"),
    "a name with NUL": ({"name": "a\x00"}, "/name", "bad_format"),
    "metadata with NUL": ({"metadata": {"a": "\x00"}}, "/metadata/a", "bad_format"),
    "half a surrogate": ({"metadata": {"a": "\ud800"}}, "/metadata/a", ""),
    "much metadata": ({"metadata": {f"k{i}": "" for i in range(17)}}, "/metadata", ""),
    "negative seed": ({"seed": -1}, "/seed", "out_of_range"),
    "huge seed": ({"seed": 2**64}, "/seed", "out_of_range"),
}


class TestBadRequest:
    @pytest.mark.parametrize("case", _BAD_BODIES)
    def test_points_at_the_field_and_creates_nothing(
        self, rig: Rig, dataset_id: str, case: str
    ) -> None:
        changes, pointer, code = _BAD_BODIES[case]
        answer = rig.client.post(
            _JOBS,
            content=json.dumps(_request(dataset_id, **changes)),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        error = answer.json()["errors"][0]
        assert error["in"] == "body"
        assert error["pointer"] == (pointer or "/method/adapter/kind")
        assert error["message"]
        if code:
            assert error["code"] == code
        assert rig.count_rows() == {"datasets": 1}

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
    @pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "drop_path"])
    def test_numbers_that_json_does_not_have_are_refused(
        self, rig: Rig, dataset_id: str, field: str, number: str
    ) -> None:
        text = json.dumps(_request(dataset_id, hyperparameters={field: 12345}))
        answer = rig.client.post(
            _JOBS,
            content=text.replace("12345", number),
            headers={"content-type": "application/json"},
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == f"/hyperparameters/{field}"

    def test_messages_name_what_is_allowed(self, rig: Rig, dataset_id: str) -> None:
        for method, names in (
            ({"pair": "x"}, list(PAIRS)),
            ({"type": "x", "pair": "starter"}, ["idat", "adapter"]),
        ):
            answer = rig.client.post(_JOBS, json=_request(dataset_id, method=method))
            message = answer.json()["errors"][0]["message"]
            assert all(repr(name) in message for name in names)

    @pytest.mark.parametrize(
        ("student", "part"),
        [
            ("x", "networks of timm can be used"),
            ("resnet50.a1_in1k", "ResNet is not supported: it is made of convolutions"),
            ("vit_base_patch16_224.augreg", "vit_base_patch16_224.augreg_in21k"),
        ],
    )
    def test_an_unknown_network_is_told_why_and_where_others_are_listed(
        self, rig: Rig, dataset_id: str, student: str, part: str
    ) -> None:
        body = _request(dataset_id, method={"type": "adapter", "student": student})
        answer = rig.client.post(_JOBS, json=body)
        message = answer.json()["errors"][0]["message"]
        assert part in message
        assert message.endswith("GET /v1/fine_tuning/methods lists a choice")

    def test_all_wrong_fields_are_told_at_once(self, rig: Rig, dataset_id: str) -> None:
        wanted = _request(dataset_id, method={"pair": "x", "student": "y", "teacher": "z"})
        errors = rig.client.post(_JOBS, json=wanted).json()["errors"]
        assert {error["pointer"] for error in errors} == {
            "/method/pair",
            "/method/student",
            "/method/teacher",
        }

    @pytest.mark.parametrize(
        "body",
        [b"{", b"", b'{"dataset_id": }', b"\xff\xfe", b"[" * 100_000, b"9" * 10_000],
        ids=["cut", "empty", "hole", "bytes", "deep", "long number"],
    )
    def test_malformed_json_is_a_clean_4xx(self, rig: Rig, body: bytes) -> None:
        answer = rig.client.post(_JOBS, content=body, headers={"content-type": "application/json"})
        # An absent body is a missing field; the rest cannot be parsed at all.
        assert answer.status_code == (400 if body else 422)
        assert answer.headers["content-type"] == "application/problem+json"

    @pytest.mark.parametrize(
        "content_type", ["text/plain", "multipart/form-data; boundary=x", None]
    )
    def test_another_content_type_is_415(self, rig: Rig, content_type: str | None) -> None:
        headers = {} if content_type is None else {"content-type": content_type}
        answer = rig.client.post(_JOBS, content=b"{}", headers=headers)
        assert answer.status_code == 415

    def test_a_body_over_the_limit_is_413(self, rig: Rig) -> None:
        body = b'{"name": "' + b"x" * (1 << 20) + b'"}'
        headers = {"content-type": "application/json"}
        declared = rig.client.post(_JOBS, content=body, headers=headers)
        counted = rig.client.post(_JOBS, content=iter([body]), headers=headers)
        assert [declared.status_code, counted.status_code] == [413, 413]
        assert declared.json()["code"] == counted.json()["code"] == "too_large"

    def test_an_unknown_dataset_is_422(self, rig: Rig) -> None:
        answer = rig.client.post(_JOBS, json=_request("ds_unknown"))
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/dataset_id"
        assert answer.json()["code"] == "dataset_not_found"

    @pytest.mark.parametrize("query", ["", "?dry_run=true"])
    def test_an_invalid_dataset_is_409(self, rig: Rig, query: str) -> None:
        dataset_id = rig.upload()
        rig.finish_validation(state=DatasetState.INVALID)
        answer = rig.client.post(_JOBS + query, json=_request(dataset_id))
        assert (answer.status_code, answer.json()["code"]) == (409, "dataset_not_usable")
