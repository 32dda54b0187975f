"""Sending a blob: whole, in part, or not at all to whoever has it."""

from collections.abc import Mapping
from typing import IO, Any

from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from api.errors import build_problem
from core.platform.storage.base import BlobStore

_REFUSALS = {
    400: ("malformed_range", "the Range header cannot be read; send one like 'bytes=0-999'"),
    416: ("range_not_satisfiable", "the Range begins beyond the end of the file"),
}


def send_blob(
    request: Request,
    store: BlobStore,
    sha256: str,
    *,
    media_type: str,
    file_name: str,
    inline: bool = False,
    vary: str = "",
) -> Response:
    """Return the answer that sends a blob; its digest is a strong ETag.

    Args:
        request: with the caller's `If-None-Match`, `If-Range` and `Range`.
        store: where the blob is.
        sha256: which one.
        media_type: what it is.
        file_name: what a browser shall call it.
        inline: whether a browser shall show it rather than save it.
        vary: request headers that chose this blob among others, for caches.
    """
    etag = f'"{sha256}"'
    unchanged = find_unchanged(request, etag, vary=vary)
    if unchanged is not None:
        return unchanged
    return send_file(
        store.open(sha256),
        etag=etag,
        media_type=media_type,
        file_name=file_name,
        inline=inline,
        vary=vary,
    )


def find_unchanged(request: Request, etag: str, *, vary: str = "") -> Response | None:
    """Return the answer 304 if the caller has this very file already, else None."""
    known = [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or f"W/{etag}" in known or "*" in known:
        return Response(status_code=304, headers=_build_headers(etag, vary))
    return None


def send_file(
    file: IO[bytes],
    *,
    etag: str,
    media_type: str,
    file_name: str,
    inline: bool = False,
    vary: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the answer that sends an open file, and then closes it.

    Args:
        file: it may have no name any more.
        etag: strong, in its quotes: equal tags mean equal bytes.
        media_type: what it is.
        file_name: what a browser shall call it.
        inline: whether a browser shall show it rather than save it.
        vary: request headers that chose this file among others, for caches.
        headers: further ones of the answer.
    """
    return _BlobResponse(
        file,
        media_type=media_type,
        filename=file_name,
        headers={**_build_headers(etag, vary), **(headers or {})},
        content_disposition_type="inline" if inline else "attachment",
    )


def _build_headers(etag: str, vary: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "no-cache", **({"Vary": vary} if vary else {})}


class _BlobResponse(FileResponse):
    """An open file whose refusals of a `Range` are problem documents, as all other failures are."""

    def __init__(self, file: IO[bytes], **options: Any) -> None:  # noqa: ANN401 - Starlette's
        """Take the file over; by its descriptor it can be opened even when its name is gone."""
        self._file = file
        super().__init__(f"/proc/self/fd/{file.fileno()}", **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the refusal in place of Starlette's."""
        with self._file:
            await self._send(scope, receive, send)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal: Message | None = None

        async def send_unless_refused(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in _REFUSALS:
                refusal = message
            if refusal is None:
                await send(message)

        await super().__call__(scope, receive, send_unless_refused)
        if refusal is None:
            return
        code, detail = _REFUSALS[refusal["status"]]
        problem = build_problem(
            scope["state"]["request_id"],
            refusal["status"],
            detail,
            code,
            headers={"Content-Range": f"bytes */{self.headers['content-length']}"},
        )
        await problem(scope, receive, send)
