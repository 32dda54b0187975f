"""Who may call: API keys as bearer tokens, or, on a loopback address without keys, this machine.

Closed by default: a route is open only if it is named here. Without keys nothing tells a person at
the machine from a web page open in that person's browser, so a request that such a page could have
made is refused.
"""

import hashlib
import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import ForbiddenOriginError, problem_of
from core.errors import AppError, UnauthorizedError
from core.settings import Settings

#: Open to everybody: what load balancers poll, and the documentation.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"})
#: Path under which the documentation's own scripts and styles are served.
DOCS_ASSETS = "/docs-assets"


class AuthMiddleware:
    """Lets a request through, or answers 401 or 403 before any of its body is read."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        """Wrap an application; keep only digests of the keys."""
        self._app = app
        self._digests = tuple(_digest(key.get_secret_value()) for key in settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide, then pass on."""
        if scope["type"] == "http" and not _is_open(scope["path"]):
            headers = Headers(scope=scope)
            error = self._find_key_error(headers) if self._digests else _find_origin_error(headers)
            if error is not None:
                await problem_of(scope["state"]["request_id"], error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _find_key_error(self, headers: Headers) -> AppError | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return UnauthorizedError(
                "this server wants an API key: send the header 'Authorization: Bearer <key>'"
            )
        given = _digest(token.strip())
        # Every key is compared, in constant time, so that timing tells nothing of any of them.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return None if any(matches) else UnauthorizedError("this API key is not known here")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(f"{DOCS_ASSETS}/")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _find_origin_error(headers: Headers) -> AppError | None:
    host = headers.get("host", "")
    # A name that a foreign DNS server points at 127.0.0.1 is how a page gets past the browser.
    if not _is_loopback(host):
        return ForbiddenOriginError(
            f"without API keys this server answers to loopback names only, not to {host!r}"
        )
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return ForbiddenOriginError(
            f"without API keys this server takes nothing from pages of {origin!r}"
        )
    return None


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
