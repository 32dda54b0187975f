"""Strict JSON."""

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel

from api.errors import MalformedError
from api.json_body import parse_json, validate_body
from core.errors import InvalidError


class _Inner(BaseModel):
    count: int


class _Body(BaseModel):
    inner: _Inner


def test_json_is_read() -> None:
    assert parse_json('{"a": ["é", "\\ud83d\\ude00", 1.5, null]}'.encode()) == {
        "a": ["é", "😀", 1.5, None]
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1,]",
        b"\xff\xfe{\x00",
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'"\\ud800"',
        b'{"a": "\\uDFFFx"}',
        b'{"\\ud800": 1}',
        b"1" * 5000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedError) as raised:
        parse_json(body)
    assert raised.value.code == "malformed_json"


@pytest.mark.parametrize("body", [b"NaN", b'{"a": [Infinity]}', b"-Infinity"])
def test_numbers_that_json_has_no_word_for_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidError, match="no word for"):
        parse_json(body)


def test_a_body_that_does_not_fit_is_pointed_at() -> None:
    with pytest.raises(RequestValidationError) as raised:
        validate_body(_Body, {"inner": {"count": "x"}}, "part")
    (error,) = raised.value.errors()
    assert error["loc"] == ("body", "part", "inner", "count")
    assert "input" not in error, "an image in base64 would be in the answer and in the log"
