"""Who may call: API keys as bearer tokens, or, on a loopback address without keys, this machine.

A key opens one project, and the request sees nothing of any other. Without keys there is only the
project `default`.

Closed by default: a route is open only if it is named here. Without keys nothing tells a person at
the machine from a web page open in that person's browser, so a request that such a page could have
made is refused.
"""

import hashlib
import hmac
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import ForbiddenOriginError, problem_of
from api.headers import find_header
from core.errors import AppError, UnauthorizedError
from core.settings import Settings
from core.types import DEFAULT_PROJECT

#: Open to everybody: what load balancers poll, and the documentation.
OPEN_PATHS = frozenset(
    {"/healthz", "/readyz", "/docs", "/redoc", "/openapi.json"}
    | {"/v2/health/live", "/v2/health/ready", "/ping", "/health"}
)
#: Path under which the documentation's own scripts and styles are served.
DOCS_ASSETS = "/docs-assets"


class AuthMiddleware:
    """Lets a request through, or answers 401 or 403 before any of its body is read."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        """Wrap an application; keep only digests of the keys."""
        self._app = app
        self._keys = tuple(
            (_digest(secret.get_secret_value()), project)
            for project, secret in settings.project_keys
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide, then pass on."""
        if scope["type"] == "http" and not _is_open(scope["path"]):
            try:
                project = self._get_project(scope)
            except AppError as error:
                await problem_of(scope["state"]["request_id"], error)(scope, receive, send)
                return
            scope["state"]["project"] = project
        await self._app(scope, receive, send)

    def _get_project(self, scope: Scope) -> str:
        """Return the project that a request is for.

        Raises:
            UnauthorizedError: it has no key, or one that is not known.
            ForbiddenOriginError: there are no keys, and a foreign page may have made it.
        """
        if not self._keys:
            _check_origin(scope)
            return DEFAULT_PROJECT
        scheme, _, token = (find_header(scope, b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise UnauthorizedError(
                "this server wants an API key: send the header 'Authorization: Bearer <key>'"
            )
        given = _digest(token.strip())
        # Every key is compared, in constant time, so that timing tells nothing of any of them.
        found = [project for known, project in self._keys if hmac.compare_digest(given, known)]
        if not found:
            raise UnauthorizedError("this API key is not known here")
        return found[0]


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(f"{DOCS_ASSETS}/")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _check_origin(scope: Scope) -> None:
    host = find_header(scope, b"host") or ""
    # A name that a foreign DNS server points at 127.0.0.1 is how a page gets past the browser.
    if not _is_loopback(host):
        raise ForbiddenOriginError(
            f"without API keys this server answers to loopback names only, not to {host!r}"
        )
    origin = find_header(scope, b"origin")
    if origin is not None and origin != f"http://{host}":
        raise ForbiddenOriginError(
            f"without API keys this server takes nothing from pages of {origin!r}"
        )


@lru_cache(maxsize=64)  # asked at every request, of the same few names
def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
