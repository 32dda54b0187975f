"""Refuses inference that would be refused later anyhow, before a byte of its body is read.

A refusal costs next to nothing then, and an overload stays cheap. What is let in is counted in
bytes, so that the bodies of all requests together stay within a bound. Pure ASGI; no torch here.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import problem_of
from api.headers import find_header
from api.lifecycle import Lifecycle
from core.errors import AppError, UnavailableError
from core.settings import Settings

_INFERENCE = re.compile(
    r"/v1/models/([^/]+)/(?:classify|embeddings)/?"
    r"|/v2/models/([^/]+)(?:/versions/[^/]+)?/infer"
    r"|/v1/backbones/[^/]+/embeddings"
    r"|/invocations"
)
_RETRY_AFTER_S = 1.0


class DrainingError(UnavailableError):
    """This process is about to leave; another one, or the next, answers."""

    code = "draining"
    retry_after_s = _RETRY_AFTER_S


class BodiesFullError(UnavailableError):
    """The bodies of the requests under way take all the memory that there is for them."""

    code = "overloaded"
    retry_after_s = _RETRY_AFTER_S


class InferenceGateMiddleware:
    """Lets a request for inference in, or answers 429 or 503 at once."""

    def __init__(self, app: ASGIApp, *, settings: Settings, lifecycle: Lifecycle) -> None:
        """Wrap an application, inside of what knows the request's project."""
        self._app = app
        self._lifecycle = lifecycle
        self._max_bytes = settings.inference_body_bytes
        #: what a body that does not say its length is taken for
        self._undeclared_bytes = settings.max_image_bytes
        self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide, count, pass on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        match = _INFERENCE.fullmatch(scope["path"])
        if match is None:
            await self._app(scope, receive, send)
            return
        declared = find_header(scope, b"content-length") or ""
        is_declared = declared.isascii() and declared.isdigit()
        body_bytes = int(declared) if is_declared else self._undeclared_bytes
        try:
            self._check(scope, match[1] or match[2], body_bytes)
        except AppError as error:
            engine = scope["app"].state.services.inference
            if engine is not None:
                engine.metrics.count_rejection(error)
            response = problem_of(scope["state"]["request_id"], error)
            if isinstance(error, DrainingError):
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        self._bytes += body_bytes
        try:
            await self._app(scope, receive, send)
        finally:
            self._bytes -= body_bytes

    def _check(self, scope: Scope, reference: str | None, body_bytes: int) -> None:
        if self._lifecycle.is_draining:
            raise DrainingError("this server is about to stop; send the request again elsewhere")
        engine = scope["app"].state.services.inference
        if engine is None:
            return
        if self._bytes and self._bytes + body_bytes > self._max_bytes:
            raise BodiesFullError(
                f"requests with {self._bytes} bytes are under way, as many as fit; try again"
            )
        engine.check_admission(scope["state"]["project"], reference)
