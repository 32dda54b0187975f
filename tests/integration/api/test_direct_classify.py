"""Plain requests are answered past the framework's routing, and to the byte as the route does."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.routes import classify
from tests.integration.api.models import build_files, build_picture, import_model
from tests.integration.api.rig import SERVES, TESTS_URL, Rig

_PICTURE = {"content": build_picture(), "headers": {"content-type": "image/png"}}
#: What makes a request not plain, and changes nothing of its answer.
_DEFAULT = "function_to_apply=softmax"
_OWN = {"x-request-id", "server-timing"}


@pytest.fixture
def rig(start_rig: Callable[..., Rig], tmp_path: Path) -> Rig:
    """An API with the model `animals`, and a client that is told of bugs as any other."""
    rig = start_rig(**SERVES, max_image_bytes=50_000)
    client: Any = TestClient(rig.app, base_url=TESTS_URL, raise_server_exceptions=False)
    import_model(client, build_files(tmp_path / "bundle"))
    return Rig(rig.settings, rig.app, client, rig.database)


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models of the requests that were answered directly."""
    models: list[str] = []
    answer = classify._answer_images

    async def count(request: Any, model: str, **options: Any) -> Any:
        models.append(model)
        return await answer(request, model, **options)

    monkeypatch.setattr(classify, "_answer_images", count)
    return models


def _ask_both(rig: Rig, model: str, query: str, request: dict[str, Any]) -> list[Any]:
    answers = []
    for asked in (query, f"{query}&{_DEFAULT}"):
        # A body in pieces can be sent once.
        own = {name: part() if callable(part) else part for name, part in request.items()}
        answers.append(rig.client.post(f"/v1/models/{model}/classify?{asked}", **own))
    return answers


def _without_own(answer: Any) -> tuple[int, list[tuple[str, str]], Any]:
    headers = [(name, value) for name, value in answer.headers.items() if name not in _OWN]
    body = answer.json()
    if isinstance(body, dict):
        assert body.pop("request_id") == answer.headers["x-request-id"]
        headers.remove(("content-length", str(len(answer.content))))
    return answer.status_code, sorted(headers), body


def _send_in_pieces() -> Iterator[bytes]:
    yield from (bytes(25_000), bytes(25_001))


_CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "an image": ("animals", "", _PICTURE, 200),
    "fewer classes": ("animals", "top_k=2", _PICTURE, 200),
    "no type": ("animals", "", {"content": build_picture()}, 200),
    "a form": ("animals", "", {"files": {"image": ("a.png", build_picture())}}, 200),
    "no such model": ("nobody", "", _PICTURE, 404),
    "no such alias": ("animals@none", "", _PICTURE, 404),
    "no image": ("animals", "", _PICTURE | {"content": b""}, 422),
    "a broken image": ("animals", "", _PICTURE | {"content": b"x"}, 422),
    "text": ("animals", "", _PICTURE | {"headers": {"content-type": "text/plain"}}, 415),
    "too large": ("animals", "", _PICTURE | {"content": bytes(50_001)}, 413),
    "too large, told late": ("animals", "", _PICTURE | {"content": _send_in_pieces}, 413),
    "no time": ("animals", "", {"content": b"x", "headers": {"request-timeout": "no"}}, 422),
}


@pytest.mark.parametrize("case", _CASES)
def test_the_answer_is_the_routes(rig: Rig, direct: list[str], case: str) -> None:
    model, query, request, status = _CASES[case]
    plain, usual = _ask_both(rig, model, query, request)
    assert plain.status_code == status, plain.text
    assert _without_own(plain) == _without_own(usual)
    assert set(direct) == {model}


def test_a_bug_is_told_by_id_only(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: object, **_options: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(rig.app.state.services.inference, "predict", fail)
    plain, usual = _ask_both(rig, "animals", "", _PICTURE)
    assert (plain.status_code, plain.json()["code"]) == (500, "internal_error")
    assert "secret" not in plain.text
    usual_detail = usual.json()["detail"].replace(
        usual.headers["x-request-id"], plain.headers["x-request-id"]
    )
    assert plain.json()["detail"] == usual_detail


@pytest.mark.parametrize(
    ("asked", "request_", "status"),
    [
        ("POST animals/classify?top_k=0", _PICTURE, 422),
        ("POST animals/classify?top_k=2&threshold=2", _PICTURE, 200),
        ("POST -animals/classify", _PICTURE, 422),
        ("POST animals/classify/", _PICTURE, 404),
        ("POST animals/classify", {"json": {"inputs": "?"}}, 422),
        ("GET animals/classify", {}, 405),
        ("HEAD animals/classify", {}, 405),
    ],
)
def test_what_is_not_plain_is_the_routes(
    rig: Rig, direct: list[str], asked: str, request_: dict[str, Any], status: int
) -> None:
    method, path = asked.split()
    answer = rig.client.request(method, f"/v1/models/{path}", **request_)
    assert answer.status_code == status, answer.text
    assert direct == []


def test_a_refusal_at_the_door_comes_first(rig: Rig, direct: list[str]) -> None:
    headers = {"content-type": "image/png", "origin": "http://elsewhere"}
    answer = rig.client.post("/v1/models/animals/classify", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden_origin")
    assert direct == []
