"""Bytes from the socket: cut anywhere, cut off, lying about their lengths."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.engine.framing import (
    MAX_DATA_BYTES,
    MAX_META_BYTES,
    VERSION,
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    check_hello,
    encode,
)

_HEAD = struct.Struct("!HBxIII")
_MAGIC = 0x1DA7


def _head(magic: int = _MAGIC, kind: int = Kind.ASK, meta: int = 0, data: int = 0) -> bytes:
    return _HEAD.pack(magic, kind, 7, meta, data)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(Kind),
            st.integers(0, 2**32 - 1),
            st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
            st.binary(max_size=40),
        ),
        max_size=6,
    ),
    st.integers(1, 30),
)
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames, step):
    stream = b"".join(
        encode(kind, call, meta, len(data)) + data for kind, call, meta, data in frames
    )
    reader = FrameReader()
    found = []
    for at in range(0, len(stream), step):
        found += list(reader.feed(stream[at : at + step]))
    assert [(f.kind, f.call, dict(f.meta), bytes(f.data)) for f in found] == frames
    assert reader.is_empty


@given(st.integers(0, 30))
def test_a_truncated_frame_is_none(missing):
    stream = encode(Kind.IMAGE, 1, {"i": 0}, 8) + bytes(8)
    reader = FrameReader()
    assert len(list(reader.feed(stream[: len(stream) - missing]))) == (0 if missing else 1)
    assert reader.is_empty == (missing == 0)


@pytest.mark.parametrize(
    "stream",
    [
        _head(magic=0x4745),
        b"GET /metrics HTTP/1.1\r\n",
        _head(kind=0),
        _head(kind=200),
        _head(meta=MAX_META_BYTES + 1),
        _head(data=MAX_DATA_BYTES + 1),
        _head(meta=2**32 - 1, data=2**32 - 1),
        _head(meta=2) + b"[]",
        _head(meta=3) + b"nul",
        _head(meta=2) + b"\xff\xfe",
        _head(meta=5000) + b"[" * 5000,
    ],
)
def test_hostile_bytes_are_refused_before_anything_is_waited_for(stream):
    with pytest.raises(ProtocolError):
        list(FrameReader().feed(stream))


@given(st.binary(max_size=200))
def test_noise_is_refused_or_waited_for(noise):
    reader = FrameReader()
    try:
        frames = list(reader.feed(noise))
    except ProtocolError:
        return
    assert frames == []


def test_what_would_be_refused_is_not_sent():
    with pytest.raises(ProtocolError):
        encode(Kind.ASK, 1, {"what": "x" * MAX_META_BYTES})
    with pytest.raises(ProtocolError):
        encode(Kind.IMAGE, 1, None, MAX_DATA_BYTES + 1)


@pytest.mark.parametrize(
    ("kind", "meta"),
    [
        (Kind.HELLO, {"version": VERSION + 1}),
        (Kind.HELLO, {"version": str(VERSION)}),
        (Kind.HELLO, {}),
        (Kind.ASK, {"version": VERSION}),
    ],
)
def test_another_version_is_told_apart(kind, meta):
    check_hello(Frame(Kind.HELLO, 0, {"version": VERSION}, bytearray()))
    with pytest.raises(ProtocolError):
        check_hello(Frame(kind, 0, meta, bytearray()))
