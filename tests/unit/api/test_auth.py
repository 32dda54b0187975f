"""Who gets past the door, and that nothing of a refused request is read."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from api.auth import AuthMiddleware
from core.settings import Settings, describe_wrong_settings

_KEYS = {"api_keys": "first-key,second-key"}


def _call(
    headers: dict[str, str], *, path: str = "/v1/datasets", **settings: Any
) -> tuple[int, dict[str, str]]:
    """Send a request through the middleware; return the status and headers of the answer."""
    sent: list[Message] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "state": {"request_id": "req_1"},
    }
    middleware = AuthMiddleware(app, settings=Settings.model_validate(settings))
    asyncio.run(middleware(scope, receive, send))
    answer = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], answer


class TestKeys:
    @pytest.mark.parametrize("key", ["first-key", "second-key"])
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    def test_a_known_key_passes(self, scheme: str, key: str) -> None:
        assert _call({"Authorization": f"{scheme} {key}"}, **_KEYS)[0] == 200

    @pytest.mark.parametrize(
        "value",
        ["Bearer", "Bearer ", "Basic first-key", "first-key", "Bearer first-ke", "Bearer \xff\xfe"],
    )
    def test_anything_else_is_401_and_says_what_to_send(self, value: str) -> None:
        status, headers = _call({"Authorization": value}, **_KEYS)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert headers["content-type"] == "application/problem+json"

    def test_no_header_is_401(self) -> None:
        assert _call({}, **_KEYS)[0] == 401

    def test_loopback_needs_the_key_too_once_there_is_one(self) -> None:
        assert _call({"Host": "127.0.0.1"}, **_KEYS)[0] == 401

    @pytest.mark.parametrize(
        "path",
        [
            "/healthz",
            "/readyz",
            "/docs",
            "/openapi.json",
            "/v2/health/live",
            "/v2/health/ready",
            "/ping",
            "/health",
        ],
    )
    def test_the_open_paths_are_open(self, path: str) -> None:
        assert _call({}, path=path, **_KEYS)[0] == 200

    @pytest.mark.parametrize(
        "path", ["/", "/healthz/", "/v1/unknown", "//healthz", "/v2", "/v2/health", "/invocations"]
    )
    def test_every_other_path_is_closed(self, path: str) -> None:
        assert _call({}, path=path, **_KEYS)[0] == 401


class TestWithoutKeys:
    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000", "127.9.9.9"]
    )
    def test_this_machine_passes(self, host: str) -> None:
        assert _call({"Host": host})[0] == 200

    @pytest.mark.parametrize("host", ["", "evil.example:8000", "10.0.0.1", "[::1", "0.0.0.0"])
    def test_a_rebound_name_is_403(self, host: str) -> None:
        assert _call({"Host": host})[0] == 403

    def test_a_foreign_page_is_403(self) -> None:
        headers = {"Host": "127.0.0.1:8000", "Origin": "https://evil.example"}
        assert _call(headers)[0] == 403
        assert _call({**headers, "Origin": "null"})[0] == 403
        assert _call({**headers, "Origin": "http://127.0.0.1:9000"})[0] == 403

    def test_its_own_page_passes(self) -> None:
        assert _call({"Host": "127.0.0.1:8000", "Origin": "http://127.0.0.1:8000"})[0] == 200


class TestProjects:
    """Each key opens one project, which the routes find in the request's state."""

    def project_of(self, headers: dict[str, str], **settings: Any) -> str:
        found: list[str] = []

        async def app(scope: Scope, _receive: Receive, send: Send) -> None:
            found.append(scope["state"]["project"])
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def send(_message: Message) -> None:
            return None

        async def receive() -> Message:
            raise AssertionError("the body was read")

        scope: Scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/datasets",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            "state": {"request_id": "req_1"},
        }
        asyncio.run(
            AuthMiddleware(app, settings=Settings.model_validate(settings))(scope, receive, send)
        )
        (project,) = found
        return project

    @pytest.mark.parametrize(
        ("key", "project"),
        [("one", "default"), ("two", "flowers"), ("three", "flowers"), ("a:b", "default")],
    )
    def test_a_key_opens_its_project(self, key: str, project: str) -> None:
        keys = "one,flowers:two,flowers:three,default:a:b"
        headers = {"Authorization": f"Bearer {key}"}
        assert self.project_of(headers, api_keys=keys) == project

    def test_without_keys_there_is_the_default_one(self) -> None:
        assert self.project_of({"Host": "127.0.0.1"}) == "default"

    @pytest.mark.parametrize(
        "keys", ["Flowers:secret", "a b:secret", ":secret", "flowers:", "a:secret,b:secret"]
    )
    def test_keys_that_open_no_project_or_two_are_refused_without_being_told(
        self, keys: str
    ) -> None:
        with pytest.raises(ValueError, match="IDAT_API_KEYS") as refusal:
            Settings.model_validate({"api_keys": keys})
        assert "secret" not in describe_wrong_settings(refusal.value)  # type: ignore[arg-type]
