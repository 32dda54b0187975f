"""Aliases over HTTP: preconditions, history, rollback, and what a switch means to requests."""

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from core.platform.db.tables import ModelRow
from core.platform.models.liveness import NEVER_S
from core.platform.models.versions import assign_version
from core.types import new_model_id
from tests.integration.api.live import serve, wait_until
from tests.integration.api.models import build_files, build_picture, classify, import_model
from tests.integration.api.rig import Rig

ALIAS = "/v1/models/animals/aliases/production"


def add_model(rig: Rig, name: str = "animals", project: str = "default") -> str:
    """A row alone, as an import leaves it."""
    store = rig.app.state.services.store
    model = ModelRow(
        id=new_model_id(),
        project_id=project,
        name=name,
        backbone="starter",
        adapter_sha256=store.put_bytes(b"a").sha256,
        adapter_bytes=1,
        config_sha256=store.put_bytes(b"{}").sha256,
        card_sha256=store.put_bytes(b"# x").sha256,
        classes=["a", "b"],
        metrics={},
        deleted_at=NEVER_S,
    )
    with rig.database.write() as session:
        session.add(model)
        assign_version(session, model)
    return model.id


class TestSetting:
    def test_creates_switches_and_shows(self, rig: Rig) -> None:
        first, second = add_model(rig), add_model(rig)
        created = rig.client.put(ALIAS, json={"model_id": first})
        assert (created.status_code, created.headers["location"]) == (201, ALIAS)
        assert rig.client.get("/v1/models/animals@production").json()["id"] == first
        assert rig.client.get("/v1/models/animals@v2").json()["id"] == second
        switched = rig.client.put(ALIAS, json={"model_id": second})
        assert (switched.status_code, switched.json()["model_id"]) == (200, second)
        assert rig.client.get(ALIAS).json() == switched.json()
        assert rig.client.get(ALIAS).headers["etag"] == switched.headers["etag"]
        assert rig.client.get("/v1/models/animals@production/card").text == "# x"
        rig.client.put("/v1/models/animals/aliases/canary", json={"model_id": first})
        listed = rig.client.get("/v1/models/animals/aliases").json()["data"]
        assert [(a["alias"], a["model_id"]) for a in listed] == [
            ("canary", first),
            ("production", second),
        ]

    def test_a_precondition_that_does_not_hold_is_412(self, rig: Rig) -> None:
        first, second = add_model(rig), add_model(rig)

        def put(model_id: str, **headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return rig.client.put(ALIAS, json={"model_id": model_id}, headers=named)

        assert put(first, if_match="*").status_code == 412
        seen = put(first, if_none_match="*").headers["etag"]
        refused = put(second, if_none_match="*")
        assert (refused.status_code, refused.json()["code"]) == (412, "alias_changed")
        assert put(second, if_match=seen).status_code == 200
        for stale in (seen, '"x"', "nonsense"):
            assert put(first, if_match=stale).status_code == 412
            assert rig.client.delete(ALIAS, headers={"if-match": stale}).status_code == 412
            again = rig.client.post(f"{ALIAS}/rollback", headers={"if-match": stale})
            assert again.status_code == 412
        assert rig.client.get(ALIAS).json()["model_id"] == second
        assert put(first, if_match="*").status_code == 200

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ({"model_id": "mdl_none"}, "alias_target_unusable"),
            ({"model_id": "other"}, "alias_target_unusable"),
            ({}, "invalid_request"),
            ({"model_id": "mine", "shadow_fraction": 0.5}, "invalid_request"),
            ({"model_id": "mine", "shadow_model_id": "mine"}, "alias_target_unusable"),
            ({"model_id": "mine", "shadow_model_id": "x", "shadow_fraction": 2}, "invalid_request"),
            ({"model_id": "mine", "weight": 1}, "invalid_request"),
        ],
    )
    def test_a_wrong_target_is_422(self, rig: Rig, body: dict[str, object], code: str) -> None:
        ids = {"mine": add_model(rig), "other": add_model(rig, "plants")}
        named = {k: ids.get(v, v) if isinstance(v, str) else v for k, v in body.items()}
        answer = rig.client.put(ALIAS, json=named)
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text

    @pytest.mark.parametrize("alias", ["v1", "x" * 65, "a@b", "-a", "%00"])
    def test_a_wrong_name_is_422(self, rig: Rig, alias: str) -> None:
        body = {"model_id": add_model(rig)}
        answer = rig.client.put(f"/v1/models/animals/aliases/{alias}", json=body)
        assert answer.status_code == 422

    def test_another_projects_are_not_there(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(api_keys=["first-secret-key", "zoo:second-secret-key"])
        mine = {"Authorization": "Bearer first-secret-key"}
        zoo = {"Authorization": "Bearer second-secret-key"}
        theirs = add_model(rig, project="zoo")
        assert rig.client.put(ALIAS, json={"model_id": theirs}, headers=mine).status_code == 422
        assert rig.client.put(ALIAS, json={"model_id": theirs}, headers=zoo).status_code == 201
        for method, path in itertools.product(
            ("GET", "DELETE"), (ALIAS, "/v1/models/animals@production")
        ):
            assert rig.client.request(method, path, headers=mine).status_code == 404
        for path in ("history", "shadow"):
            assert rig.client.get(f"{ALIAS}/{path}", headers=mine).status_code == 404
        assert rig.client.post(f"{ALIAS}/rollback", headers=mine).status_code == 404
        listed = rig.client.get("/v1/models/animals/aliases", headers=mine)
        assert listed.json()["data"] == []
        changes = rig.client.get(f"{ALIAS}/history", headers=zoo).json()["data"]
        actor = changes[0]["actor"]
        assert actor.startswith("key_")
        assert "second" not in actor


class TestHistory:
    def test_tells_every_change_and_rolls_back(self, rig: Rig) -> None:
        first, second = add_model(rig), add_model(rig)
        for model_id in (first, second):
            rig.client.put(ALIAS, json={"model_id": model_id})
        back = rig.client.post(f"{ALIAS}/rollback")
        assert (back.status_code, back.json()["model_id"]) == (200, first)
        end = rig.client.post(f"{ALIAS}/rollback")
        assert (end.status_code, end.json()["code"]) == (409, "alias_has_no_previous_target")
        assert rig.client.delete(ALIAS).status_code == 204
        assert rig.client.get(ALIAS).status_code == 404
        history = rig.client.get(f"{ALIAS}/history").json()
        assert [(c["action"], c["model_id"]) for c in history["data"]] == [
            ("delete", None),
            ("rollback", first),
            ("set", second),
            ("set", first),
        ]
        page = rig.client.get(f"{ALIAS}/history?limit=1").json()
        assert (len(page["data"]), page["has_more"]) == (1, True)

    def test_a_model_in_use_cannot_be_deleted(self, rig: Rig) -> None:
        model_id = add_model(rig)
        rig.client.put(ALIAS, json={"model_id": model_id})
        refused = rig.client.delete(f"/v1/models/{model_id}")
        assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")
        assert "animals@production" in refused.json()["detail"]
        rig.client.delete(ALIAS)
        assert rig.client.delete(f"/v1/models/{model_id}").status_code == 204
        assert rig.client.get(f"{ALIAS}/history").status_code == 200


@pytest.mark.slow
def test_switching_under_load_fails_no_request(
    start_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    """Threads ask `animals@production` while it is switched to and fro fifty times."""
    rig = start_rig(roles=["control", "inference"], device="cpu", threads=1)
    ids = [
        import_model(rig.client, build_files(tmp_path / str(seed), seed=seed)) for seed in (1, 2)
    ]
    picture = build_picture()
    scores = {model_id: classify(rig.client, model_id, picture).json() for model_id in ids}
    assert scores[ids[0]] != scores[ids[1]]
    rig.client.put(ALIAS, json={"model_id": ids[0]})
    stop = threading.Event()
    answers: list[tuple[int, str, object]] = []

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                answer = classify(client, "animals@production", picture)
                model_id = answer.headers.get("x-model-id", "")
                answers.append((answer.status_code, model_id, answer.json()))

    with serve(rig.app, lifespan="off") as port:
        url = f"http://127.0.0.1:{port}"
        threads = [threading.Thread(target=ask, args=(url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            with httpx.Client(base_url=url, timeout=30) as client:
                for turn in range(50):
                    wanted = ids[(turn + 1) % 2]
                    assert client.put(ALIAS, json={"model_id": wanted}).status_code == 200
                    seen = len(answers)
                    wait_until(lambda seen=seen: len(answers) > seen)
                    if turn % 10 == 0:  # longer than a resolution is remembered
                        wait_until(
                            lambda seen=seen, wanted=wanted: any(
                                a[1] == wanted for a in answers[seen:]
                            )
                        )
                # What has been resolved before the last switch may be served for a second.
                first = len(answers)
                wait_until(lambda: any(a[1] == wanted for a in answers[first:]))
                turned = len(answers)
                wait_until(lambda: len(answers) > turned + 40)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert {status for status, _, _ in answers} == {200}
    assert {model_id for _, model_id, _ in answers} == set(ids)
    labels = {i: [s["label"] for s in found] for i, found in scores.items()}
    for _, model_id, found in answers:
        assert isinstance(found, list)
        assert [score["label"] for score in found] == labels[model_id]
    # A few that were under way may still come in; then it is the new one alone.
    assert {model_id for _, model_id, _ in answers[turned + 8 :]} == {wanted}
