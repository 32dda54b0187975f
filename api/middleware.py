"""What every request passes through: its id, the access log, the last net for bugs, the body cap.

Pure ASGI, so that uploads and downloads stream through without being wrapped in tasks.
"""

import logging
import re
import secrets

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import internal_problem, problem_of
from api.headers import find_header
from core.clock import monotonic_s
from core.errors import TooLargeError

logger = logging.getLogger("api.access")

_REQUEST_ID = b"x-request-id"
_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_DRAWN_IDS = 256

#: Largest body of a route that reads JSON. Real ones are below 10 kB.
MAX_JSON_BYTES = 1 << 20
#: Routes that stream their body and count it themselves.
_STREAMING = re.compile(
    r"/v1/datasets/?|/v1/batch_predictions/?|/v1/models:import/?"
    r"|/v1/models/[^/]+/(classify|embeddings)/?|/invocations"
    r"|/v1/backbones/[^/]+/embeddings"
    r"|/v2/models/[^/]+(/versions/[^/]+)?/infer"
)


class RequestContextMiddleware:
    """Gives each request an id and a line in the access log, and turns a bug into a problem."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app
        self._fresh_ids: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and see that there is an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = find_header(scope, _REQUEST_ID) or ""
        request_id = given if _ACCEPTABLE_ID.fullmatch(given) else self._draw_id()
        scope.setdefault("state", {})["request_id"] = request_id
        id_header = (_REQUEST_ID, request_id.encode("ascii"))
        status = 0
        started_s = monotonic_s()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                others = [pair for pair in message["headers"] if pair[0] != _REQUEST_ID]
                message["headers"] = [*others, id_header]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s: %s %s broke", request_id, scope["method"], scope["path"])
            if status:
                raise  # the answer is under way: all that is left is to break the connection
            await internal_problem(request_id)(scope, receive, send_with_id)
        finally:
            took_ms = (monotonic_s() - started_s) * 1000
            # %r: a path may hold anything, and one request is one line.
            logger.info(
                "%s %r %d %.1fms %s", scope["method"], scope["path"], status, took_ms, request_id
            )

    def _draw_id(self) -> str:
        """Return a random id, from many drawn together.

        Asking the system lets other threads run first, which is long where a request takes little.
        """
        try:
            return self._fresh_ids.pop()
        except IndexError:
            drawn = secrets.token_hex(8 * _DRAWN_IDS)
            first, *others = [f"req_{drawn[at : at + 16]}" for at in range(0, len(drawn), 16)]
            self._fresh_ids.extend(others)
            return first


class BodyCapMiddleware:
    """Refuses bodies over `MAX_JSON_BYTES`, declared or counted, but on the streaming routes."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, counting."""
        if scope["type"] != "http" or _STREAMING.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        declared = find_header(scope, b"content-length") or ""
        if declared.isascii() and declared.isdigit() and int(declared) > MAX_JSON_BYTES:
            error = TooLargeError(_too_large())
            await problem_of(scope["state"]["request_id"], error)(scope, receive, send)
            return
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            if message["type"] == "http.request":
                received_bytes += len(message.get("body", b""))
                if received_bytes > MAX_JSON_BYTES:
                    # FastAPI lets this type alone out of its reading of the body.
                    raise HTTPException(413, _too_large())
            return message

        await self._app(scope, receive_counted, send)


class HeadMiddleware:
    """Answers HEAD wherever GET is possible: the same status and headers, without the body.

    FastAPI's routes take the methods that they name and no other; naming HEAD on each would list
    every operation twice in the documentation.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask for the GET and keep its body back."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


def _too_large() -> str:
    return f"the body is over {MAX_JSON_BYTES} bytes, the limit of this route"
