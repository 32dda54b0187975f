"""Failures under /v2 in the protocol's own form, `{"error": "<sentence>"}`.

Wrapped around everything else, so that a wrong key, a path that is not there and a bug are told in
that form too.
"""

import json

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import PROBLEM_TYPE

_PREFIX = "/v2"
#: The protocol's clients know 400 for a wrong request, and no 422.
_STATUS = {422: 400}


class OipErrorMiddleware:
    """Rewrites the problem documents of one part of the paths."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and rewrite what comes back if it is a problem document."""
        if scope["type"] != "http" or not _is_protocols(scope["path"]):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        body = bytearray()

        async def send_rewritten(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_problem(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await _send_error(start, bytes(body), send)

        await self._app(scope, receive, send_rewritten)


def _is_protocols(path: str) -> bool:
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def _is_problem(message: Message) -> bool:
    return Headers(raw=message["headers"]).get("content-type", "").startswith(PROBLEM_TYPE)


async def _send_error(start: Message, problem: bytes, send: Send) -> None:
    # HeadMiddleware has taken the body of an answer to HEAD away.
    detail = json.loads(problem)["detail"] if problem else ""
    body = json.dumps({"error": detail}).encode() if problem else b""
    headers = MutableHeaders(raw=list(start["headers"]))
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    status = _STATUS.get(start["status"], start["status"])
    await send({**start, "status": status, "headers": headers.raw})
    await send({"type": "http.response.body", "body": body})
