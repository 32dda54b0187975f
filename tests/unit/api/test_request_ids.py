"""Each request has an id of its own, whatever the application behind says."""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor

from starlette.types import Message, Receive, Scope, Send

from api.middleware import _DRAWN_IDS, RequestContextMiddleware

_FORM = re.compile(r"req_[0-9a-f]{16}")


async def _app(scope: Scope, _receive: Receive, send: Send) -> None:
    headers = [(b"x-request-id", b"stale"), (b"x-told", scope["state"]["request_id"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def _receive() -> Message:
    raise AssertionError("the body was read")


def _ask(middleware: RequestContextMiddleware) -> list[tuple[bytes, bytes]]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(middleware(scope, _receive, send))
    headers: list[tuple[bytes, bytes]] = sent[0]["headers"]
    return headers


def test_the_answer_tells_the_id_that_the_application_saw_and_no_other() -> None:
    told, own = _ask(RequestContextMiddleware(_app))
    assert _FORM.fullmatch(own[1].decode())
    assert (told, own) == ((b"x-told", own[1]), (b"x-request-id", own[1]))


def test_ids_never_repeat_and_never_run_out() -> None:
    middleware = RequestContextMiddleware(_app)
    count = 2 * _DRAWN_IDS + 1
    # Several event loops may share an application.
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(_ask, middleware) for _ in range(count)]
    ids = {dict(each.result())[b"x-request-id"].decode() for each in asked}
    assert len(ids) == count
    assert all(_FORM.fullmatch(one) for one in ids)
