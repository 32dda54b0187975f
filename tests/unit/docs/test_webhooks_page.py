"""The function that docs/webhooks.md shows verifies the request that it shows."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.platform.webhooks.signing import sign

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text(encoding="utf-8")


def read_block(language: str, beginning: str) -> str:
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return str(next(block for block in blocks if block.startswith(beginning)))


def read_request() -> tuple[str, dict[str, str], bytes]:
    head, body = read_block("http", "POST").rstrip("\n").split("\n\n")
    headers = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    match = re.search(r"its secret was `(whsec_[^`]+)`", PAGE)
    assert match is not None
    return match[1], headers, body.encode()


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The page's function, at the time of the page's request."""
    namespace: dict[str, Any] = {}
    exec(compile(read_block("python", "import"), "docs/webhooks.md", "exec"), namespace)
    _secret, headers, _body = read_request()
    monkeypatch.setattr(time, "time", lambda: int(headers["webhook-timestamp"]) + 2.0)
    function: Callable[..., None] = namespace["verify"]
    return function


def test_the_request_that_is_shown_is_verified(verify: Callable[..., None]) -> None:
    verify(*read_request())


def test_a_second_signature_does_no_harm(verify: Callable[..., None]) -> None:
    secret, headers, body = read_request()
    other = "whsec_bmV3"
    event_id, timestamp = headers["webhook-id"], int(headers["webhook-timestamp"])
    both = {**headers, "webhook-signature": sign([other, secret], event_id, timestamp, body)}
    verify(secret, both, body)
    verify(other, both, body)


def test_anything_else_is_refused(verify: Callable[..., None]) -> None:
    secret, headers, body = read_request()
    with pytest.raises(ValueError, match="not signed"):
        verify(secret, headers, body + b" ")
    with pytest.raises(ValueError, match="not signed"):
        verify("whsec_b3RoZXI=", headers, body)
    with pytest.raises(ValueError, match="not signed"):
        verify(secret, {**headers, "webhook-id": "evt_other"}, body)
    old = str(int(headers["webhook-timestamp"]) - 400)
    with pytest.raises(ValueError, match="too old"):
        verify(secret, {**headers, "webhook-timestamp": old}, body)
