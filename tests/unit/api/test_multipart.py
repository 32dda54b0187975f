"""The streaming form parser, fed in pieces of every size."""

import pytest

from api.errors import MalformedError
from api.multipart import FieldSink, PartHeader, _Reader, find_boundary
from core.errors import InvalidError, UnsupportedTypeError

_BODY = (
    b"--sep\r\n"
    b'Content-Disposition: form-data; name="seed"\r\n\r\n'
    b"42\r\n"
    b"--sep\r\n"
    b'Content-Disposition: form-data; name="file"; filename="a \xc3\xa9.zip"\r\n'
    b"Content-Type: application/zip\r\n\r\n"
    b"first\r\n--se\r\n--sepp"  # all but the boundary
    b"\r\n--sep--\r\n"
)


class _Recorder:
    def __init__(self) -> None:
        self.parts: list[tuple[PartHeader, bytearray, list[bool]]] = []

    def open_part(self, header: PartHeader) -> "_Recorder":
        self.parts.append((header, bytearray(), []))
        return self

    def write(self, data: bytes) -> None:
        self.parts[-1][1].extend(data)

    def close(self) -> None:
        self.parts[-1][2].append(True)


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 7, 1000])
def test_parts_are_the_same_however_the_body_is_cut(piece_bytes: int) -> None:
    recorder = _Recorder()
    reader = _Reader(b"sep", recorder.open_part, 10)
    for start in range(0, len(_BODY), piece_bytes):
        reader.feed(_BODY[start : start + piece_bytes])
    reader.finish()
    assert recorder.parts == [
        (PartHeader("seed", None, ""), bytearray(b"42"), [True]),
        (
            PartHeader("file", "a é.zip", "application/zip"),
            bytearray(b"first\r\n--se\r\n--sepp"),
            [True],
        ),
    ]


@pytest.mark.parametrize("end", range(1, len(_BODY) - 4))
def test_a_body_cut_anywhere_is_told_from_a_whole_one(end: int) -> None:
    reader = _Reader(b"sep", _Recorder().open_part, 10)
    reader.feed(_BODY[:end])
    with pytest.raises(MalformedError) as raised:
        reader.finish()
    assert raised.value.code == "incomplete_body"


def test_more_parts_than_allowed_are_refused() -> None:
    reader = _Reader(b"sep", _Recorder().open_part, 1)
    with pytest.raises(MalformedError, match="more than 1 parts"):
        reader.feed(_BODY)


def test_a_field_has_a_limit_and_must_be_text() -> None:
    sink = FieldSink("name")
    sink.write(b"x" * 4096)
    with pytest.raises(InvalidError, match="over 4096 bytes"):
        sink.write(b"x")
    binary = FieldSink("name")
    binary.write(b"\xff")
    with pytest.raises(MalformedError, match="UTF-8"):
        binary.close()


def test_the_boundary_is_found_or_missed() -> None:
    assert find_boundary('multipart/form-data; boundary="a b"') == b"a b"
    with pytest.raises(UnsupportedTypeError):
        find_boundary("application/json")
    with pytest.raises(MalformedError):
        find_boundary("multipart/form-data")
