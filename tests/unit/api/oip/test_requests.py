"""Requests of the protocol, good and bad, as bytes."""

import base64
import json
from typing import Any

import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError

from api.errors import MalformedError
from api.oip.framing import Frame
from api.oip.requests import OUTPUTS, InferRequest, RequestedOutput, read_request
from core.errors import InvalidError, TooLargeError

_PX = 2
_PICTURES = [b"first", b"second"]
_TEXTS = [base64.b64encode(picture).decode() for picture in _PICTURES]
_IMAGES = {"name": "image", "shape": [2], "datatype": "BYTES", "data": _TEXTS}
_VALUES = np.arange(2 * 3 * _PX * _PX, dtype=np.float32).reshape(2, 3, _PX, _PX) / 7
_PIXELS = {
    "name": "pixel_values",
    "shape": [2, 3, _PX, _PX],
    "datatype": "FP32",
    "data": _VALUES.ravel().tolist(),
}


def _read(body: object, binary: bytes = b"", *, image_px: int | None = _PX) -> InferRequest:
    frame = Frame(json.dumps(body).encode(), memoryview(binary))
    return read_request(frame, image_px=image_px, max_image_bytes=100)


def _read_input(binary: bytes = b"", **changes: Any) -> InferRequest:
    tensor = {**(_PIXELS if changes.get("datatype", "BYTES") != "BYTES" else _IMAGES), **changes}
    return _read({"inputs": [{k: v for k, v in tensor.items() if v is not ...}]}, binary)


def _binary(size: int) -> dict[str, Any]:
    return {"data": ..., "parameters": {"binary_data_size": size}}


class TestImages:
    @pytest.mark.parametrize(
        ("shape", "data"), [([2], _TEXTS), ([2, 1], _TEXTS), ([2, 1], [[t] for t in _TEXTS])]
    )
    def test_come_in_base64(self, shape: list[int], data: list[Any]) -> None:
        assert _read_input(shape=shape, data=data).images == _PICTURES

    def test_come_in_binary(self) -> None:
        data = b"\x05\x00\x00\x00first\x06\x00\x00\x00second"
        assert _read_input(data, **_binary(len(data))).images == _PICTURES

    def test_one_comes_raw(self) -> None:
        request = read_request(
            Frame(None, memoryview(b"picture")), image_px=_PX, max_image_bytes=100
        )
        assert request.images == [b"picture"]
        assert request.outputs == tuple(RequestedOutput(name, is_binary=True) for name in OUTPUTS)

    @pytest.mark.parametrize("raw", [b"", b"x" * 101])
    def test_a_raw_one_must_be_there_and_within_the_limit(self, raw: bytes) -> None:
        with pytest.raises((InvalidError, TooLargeError)):
            read_request(Frame(None, memoryview(raw)), image_px=_PX, max_image_bytes=100)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"shape": [3]}, "/inputs/0/data has 2 elements, the shape 3"),
            ({"shape": [1, 2]}, r"must be \[n\] or \[n, 1\]"),
            ({"shape": []}, r"must be \[n\] or \[n, 1\]"),
            ({"shape": [0], "data": []}, "holds no image"),
            ({"datatype": "FP32", "name": "image", "shape": [2]}, "must be BYTES, not FP32"),
            ({"data": ["****", _TEXTS[0]]}, "/inputs/0/data/0 is not base64"),
            ({"data": [_TEXTS[0], 7]}, "/inputs/0/data/1 must be a string"),
            ({"data": [[_TEXTS], _TEXTS[0]]}, "/inputs/0/data/0 must be a string"),
            ({"data": [_TEXTS[0], "http://x/y.png"]}, "/inputs/0/data/1 is a URL"),
            ({"data": ...}, "/inputs/0/data is needed"),
            ({"parameters": {"binary_data_size": 0}}, "not both"),
            ({"parameters": {"shared_memory_region": "r"}}, "shared memory"),
            ({"name": "picture"}, "must be image or pixel_values"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(InvalidError, match=reason):
            _read_input(**changes)

    def test_more_than_may_be_are_too_many(self) -> None:
        with pytest.raises(TooLargeError, match="at most 64 images, not 65"):
            _read_input(shape=[65])
        with pytest.raises(TooLargeError, match="not 9223372036854775807"):
            _read_input(shape=[2**63 - 1])


class TestPixels:
    @pytest.mark.parametrize("data", [_VALUES.ravel().tolist(), _VALUES.tolist()])
    def test_come_as_numbers_flat_or_nested(self, data: list[Any]) -> None:
        assert np.array_equal(np.stack(_read_input(datatype="FP32", data=data).images), _VALUES)

    @pytest.mark.parametrize(("datatype", "dtype"), [("FP32", "<f4"), ("FP16", "<f2")])
    def test_come_in_binary(self, datatype: str, dtype: str) -> None:
        data = _VALUES.astype(dtype).tobytes()
        images = _read_input(data, datatype=datatype, **_binary(len(data))).images
        assert np.array_equal(np.stack(images), _VALUES.astype(dtype).astype(np.float32))
        assert all(image.dtype == np.float32 and image.flags.writeable for image in images)

    def test_come_in_bfloat16_which_is_half_a_float32(self) -> None:
        data = b"".join(value.tobytes()[2:] for value in _VALUES.ravel())
        images = np.stack(_read_input(data, datatype="BF16", **_binary(len(data))).images)
        assert np.allclose(images, _VALUES, rtol=2**-7, atol=0)
        assert not np.any(images.view(np.uint32) & 0xFFFF)

    def test_any_square_will_do_for_a_network_that_is_not_in_the_catalog(self) -> None:
        assert len(_read({"inputs": [_PIXELS]}, image_px=None).images) == 2

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"shape": [2, 3, 4, 4]}, r"must be \[n, 3, 2, 2\], not \[2, 3, 4, 4\]"),
            ({"shape": [2, 1, 2, 2]}, r"must be \[n, 3, 2, 2\]"),
            ({"shape": [24]}, r"must be \[n, 3, 2, 2\]"),
            ({"shape": [1, 3, 2, 2]}, "has 24 numbers, the shape 12"),
            ({"shape": [0, 3, 2, 2], "data": []}, "holds no image"),
            ({"datatype": "FP64"}, "must be one of FP32, FP16, BF16, not FP64"),
            ({"datatype": "FP16"}, "must be FP32 in JSON"),
            ({"data": ["1"] * 24}, "must hold numbers"),
            ({"data": [True] * 24}, "must hold numbers"),
            ({"data": [None] * 24}, "must hold numbers"),
            ({"data": [{}] * 24}, "must hold numbers"),
            ({"data": [10**30] * 24}, "must hold numbers"),
            ({"data": [[1.0], [1.0, 2.0]]}, "nested unevenly"),
            ({"data": [1e39] * 24}, "not finite"),
            ({"data": [*[0.0] * 23, 1e308]}, "not finite"),
            (_binary(0), "binary_data_size is 0, and the shape needs 96 bytes"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(InvalidError, match=reason):
            _read_input(**{"datatype": "FP32", **changes})

    def test_binary_numbers_must_be_finite(self) -> None:
        data = np.full(24, np.nan, dtype="<f4").tobytes()
        with pytest.raises(InvalidError, match="not finite"):
            _read_input(data, datatype="FP32", **_binary(len(data)))


class TestOutputs:
    def test_are_all_in_json_where_none_is_named(self) -> None:
        for outputs in ({}, {"outputs": []}, {"outputs": None}):
            request = _read({"inputs": [_IMAGES], **outputs})
            assert request.outputs == tuple(
                RequestedOutput(name, is_binary=False) for name in OUTPUTS
            )

    def test_are_binary_as_the_request_says_unless_they_say_otherwise(self) -> None:
        request = _read(
            {
                "inputs": [_IMAGES],
                "parameters": {"binary_data_output": True},
                "outputs": [
                    {"name": "logits"},
                    {"name": "features", "parameters": {"binary_data": False}},
                    {"name": "probabilities", "parameters": {"classification": 3}},
                ],
            }
        )
        assert request.outputs == (
            RequestedOutput("logits", is_binary=True),
            RequestedOutput("features", is_binary=False),
            RequestedOutput("probabilities", is_binary=True, classes=3),
        )

    @pytest.mark.parametrize(
        ("outputs", "reason"),
        [
            ([{"name": "loss"}], "must be one of probabilities, logits, features"),
            ([{"name": "logits"}, {"name": "logits"}], "/outputs/1/name must be .* each once"),
            ([{"name": "features", "parameters": {"classification": 2}}], "of no class"),
            ([{"name": "logits", "parameters": {"shared_memory_region": "r"}}], "shared memory"),
        ],
    )
    def test_what_cannot_be_given_is_refused(self, outputs: list[Any], reason: str) -> None:
        with pytest.raises(InvalidError, match=reason):
            _read({"inputs": [_IMAGES], "outputs": outputs})


class TestRequest:
    def test_id_and_timeout_are_read_and_strangers_passed_over(self) -> None:
        request = _read(
            {
                "id": "42",
                "model_name": "x",
                "parameters": {"timeout": 1_500_000, "mine": [1]},
                "inputs": [{**_IMAGES, "parameters": {"content_type": "pillow_image"}}],
            }
        )
        assert (request.id, request.timeout_s) == ("42", 1.5)
        assert _read({"inputs": [_IMAGES], "parameters": {"timeout": 0}}).timeout_s is None

    @pytest.mark.parametrize(
        "body",
        [
            [],
            "text",
            None,
            {},
            {"inputs": []},
            {"inputs": {}},
            {"inputs": [7]},
            {"inputs": [{**_IMAGES, "shape": [-1]}]},
            {"inputs": [{**_IMAGES, "shape": [True]}]},
            {"inputs": [{**_IMAGES, "shape": [2.0]}]},
            {"inputs": [{**_IMAGES, "shape": "2"}]},
            {"inputs": [{**_IMAGES, "shape": [2**64]}]},
            {"inputs": [{**_IMAGES, "data": "text"}]},
            {"inputs": [{**_IMAGES, "datatype": 3}]},
            {"inputs": [{**_IMAGES, "parameters": {"binary_data_size": -1}}]},
            {"inputs": [{**_IMAGES, "parameters": []}]},
            {"inputs": [_IMAGES], "id": 7},
            {"inputs": [_IMAGES], "outputs": [{}]},
            {
                "inputs": [_IMAGES],
                "outputs": [{"name": "logits", "parameters": {"classification": -1}}],
            },
            {"inputs": [_IMAGES], "parameters": {"timeout": "soon"}},
            {"inputs": [_IMAGES], "parameters": {"binary_data_output": "yes"}},
        ],
        ids=repr,
    )
    def test_what_is_no_request_is_refused(self, body: object) -> None:
        with pytest.raises(RequestValidationError):
            _read(body)

    @pytest.mark.parametrize("inputs", [[_IMAGES, _PIXELS], [_IMAGES, _IMAGES]])
    def test_two_inputs_are_one_too_many(self, inputs: list[Any]) -> None:
        with pytest.raises(InvalidError, match="must be one tensor"):
            _read({"inputs": inputs})

    def test_bytes_that_nobody_announced_are_refused(self) -> None:
        with pytest.raises(InvalidError, match="add up to 0 bytes, and 4 bytes follow"):
            _read({"inputs": [_IMAGES]}, b"more")

    def test_what_is_no_json_is_malformed(self) -> None:
        with pytest.raises(MalformedError):
            read_request(Frame(b"{", memoryview(b"")), image_px=_PX, max_image_bytes=100)
