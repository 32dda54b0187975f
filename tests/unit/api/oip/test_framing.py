"""Triton's binary framing, against bytes written out by hand."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import MalformedError
from api.oip.framing import (
    MAX_HEADER_BYTES,
    join_elements,
    split_body,
    split_elements,
    split_tensors,
)
from core.errors import InvalidError, TooLargeError


class TestSplitBody:
    def test_without_a_length_all_is_json(self) -> None:
        frame = split_body(b"{}xyz", None)
        assert (frame.header, bytes(frame.binary)) == (b"{}xyz", b"")

    def test_the_length_ends_the_json(self) -> None:
        frame = split_body(b"{}xyz", "2")
        assert (frame.header, bytes(frame.binary)) == (b"{}", b"xyz")

    def test_zero_announces_a_raw_request(self) -> None:
        frame = split_body(b"{}xyz", "0")
        assert (frame.header, bytes(frame.binary)) == (None, b"{}xyz")

    @pytest.mark.parametrize("length", ["", "-1", "+2", "2.0", "1e1", "0x2", "²", "9" * 13, "x"])
    def test_what_is_no_length_is_malformed(self, length: str) -> None:
        with pytest.raises(MalformedError, match="number of bytes"):
            split_body(b"{}", length)

    def test_a_length_beyond_the_body_is_malformed(self) -> None:
        with pytest.raises(MalformedError, match="whole body has 2 bytes"):
            split_body(b"{}", "3")

    def test_json_before_tensors_has_a_limit(self) -> None:
        body = b" " * (MAX_HEADER_BYTES + 2)
        with pytest.raises(TooLargeError):
            split_body(body, str(MAX_HEADER_BYTES + 1))
        assert split_body(body, str(len(body))).header == body


class TestTensors:
    def test_are_cut_in_order(self) -> None:
        cut = split_tensors(memoryview(b"aabbbc"), [2, 3, 1])
        assert [bytes(part) for part in cut] == [b"aa", b"bbb", b"c"]

    @pytest.mark.parametrize("sizes", [[], [5], [7], [6, 1], [2**62]])
    def test_sizes_that_are_not_what_is_there_are_refused(self, sizes: list[int]) -> None:
        with pytest.raises(InvalidError, match="add up to"):
            split_tensors(memoryview(b"aabbbc"), sizes)


class TestElements:
    def test_each_comes_behind_its_length(self) -> None:
        data = b"\x03\x00\x00\x00cat\x00\x00\x00\x00\x01\x00\x00\x00x"
        assert split_elements(memoryview(data), 3, 100) == [b"cat", b"", b"x"]
        assert join_elements(["cat", "", "x"]) == data

    @given(st.lists(st.text(max_size=20), max_size=5))
    def test_what_was_joined_is_split(self, elements: list[str]) -> None:
        encoded = [element.encode() for element in elements]
        data = memoryview(join_elements(elements))
        assert split_elements(data, len(elements), 1000) == encoded

    @given(st.binary(max_size=64), st.integers(0, 5))
    def test_any_bytes_are_split_whole_or_refused(self, data: bytes, count: int) -> None:
        try:
            elements = split_elements(memoryview(data), count, 1000)
        except (InvalidError, TooLargeError):
            return
        joined = b"".join(struct.pack("<I", len(element)) + element for element in elements)
        assert (joined, len(elements)) == (data, count)

    @pytest.mark.parametrize(
        ("data", "count"),
        [
            (b"", 1),
            (b"\x01\x00", 1),
            (b"\x02\x00\x00\x00x", 1),
            (b"\x01\x00\x00\x00xy", 1),
            (b"\x01\x00\x00\x00x", 2),
            (b"\x01\x00\x00\x00x" * 3, 2),
            (b"x", 0),
        ],
    )
    def test_lengths_that_do_not_add_up_are_refused(self, data: bytes, count: int) -> None:
        with pytest.raises(InvalidError, match="not"):
            split_elements(memoryview(data), count, 100)

    def test_an_element_over_the_limit_is_told_before_it_is_looked_for(self) -> None:
        with pytest.raises(TooLargeError, match="element 0 is over 100 bytes"):
            split_elements(memoryview(struct.pack("<I", 2**32 - 1)), 1, 100)
