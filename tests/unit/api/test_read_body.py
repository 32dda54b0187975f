"""Bodies in pieces, up to a limit."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from api.json_body import read_body
from core.errors import TooLargeError

_GONE: Message = {"type": "http.disconnect"}


def _piece(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def _read(*messages: Message, max_bytes: int = 10, headers: Any = ()) -> bytes:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    request = Request({"type": "http", "headers": list(headers)}, receive)
    body = asyncio.run(read_body(request, max_bytes, what="the image"))
    assert not waiting, "the whole body was read"
    return body


@pytest.mark.parametrize(
    "pieces", [[b"abcdef"], [b"abc", b"def"], [b"", b"abc", b"", b"def", b""], [b"abcdef", b""]]
)
def test_pieces_become_one(pieces: list[bytes]) -> None:
    messages = [_piece(piece, more=index + 1 < len(pieces)) for index, piece in enumerate(pieces)]
    body = _read(*messages)
    assert body == b"abcdef"
    assert type(body) is bytes


def test_nothing_is_empty() -> None:
    assert _read({"type": "http.request"}) == b""


@pytest.mark.parametrize("pieces", [[b"12345678901"], [b"123456", b"78901"]])
def test_more_than_the_limit_is_refused_while_it_comes(pieces: list[bytes]) -> None:
    with pytest.raises(TooLargeError, match="the image is over 10 bytes"):
        # More is announced and never comes: the limit does not wait for the end.
        _read(*(_piece(piece, more=True) for piece in pieces))


def test_the_limit_itself_is_allowed() -> None:
    assert _read(_piece(b"1234567890", more=False)) == b"1234567890"


def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(TooLargeError):
        _read(headers=[(b"content-length", b"11")])  # receiving would find nothing to pop


@pytest.mark.parametrize("messages", [[_GONE], [_piece(b"abc", more=True), _GONE]])
def test_a_client_that_goes_is_told_from_an_end(messages: list[Message]) -> None:
    with pytest.raises(ClientDisconnect):
        _read(*messages)
