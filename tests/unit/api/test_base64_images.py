"""Images in base64."""

import base64

import pytest

from api.base64_images import BadBase64Error, decode_images, json_limit_bytes
from core.errors import TooLargeError

_DATA = bytes(range(256))
_TEXT = base64.b64encode(_DATA).decode()


def _decode(*texts: str) -> list[bytes]:
    pointers = [f"/inputs/{index}" for index in range(len(texts))]
    return decode_images(texts, pointers, max_image_bytes=256)


def test_base64_is_decoded_line_breaks_and_all() -> None:
    broken = "\r\n".join(_TEXT[start : start + 76] for start in range(0, len(_TEXT), 76)) + "\n"
    assert _decode(_TEXT, broken) == [_DATA, _DATA]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("abc", "not base64"),
        ("ab=c", "not base64"),
        ("a-_b", "not base64"),
        ("****", "not base64"),
        ("Zoë=", "not base64"),
        ("", "empty"),
        (" \n", "empty"),
        ("http://127.0.0.1/cat.png", "is a URL"),
        ("HTTPS://example.org/cat.png", "is a URL"),
        ("file:///etc/passwd", "is a URL"),
        (f"data:image/png;base64,{_TEXT}", "is a URL"),
    ],
)
def test_everything_else_is_refused_and_its_place_named(text: str, reason: str) -> None:
    with pytest.raises(BadBase64Error, match=reason) as raised:
        _decode(_TEXT, text)
    assert raised.value.message.startswith("/inputs/1 ")
    assert [field.pointer for field in raised.value.fields] == ["/inputs/1"]


def test_an_image_over_the_limit_is_refused_and_its_place_named() -> None:
    with pytest.raises(TooLargeError, match="/inputs/1: the image is over 256 bytes"):
        _decode(_TEXT, base64.b64encode(_DATA + b"x").decode())


@pytest.mark.parametrize("image_bytes", [1, 32 << 20])
def test_a_json_body_has_room_for_the_largest_image_and_for_one_as_numbers(
    image_bytes: int,
) -> None:
    largest = len(base64.b64encode(b"x" * image_bytes))
    numbers = len(str([-2.1179039478302])) * 3 * 384 * 384
    assert max(largest, numbers) < json_limit_bytes(image_bytes) < 48 << 20
