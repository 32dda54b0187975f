"""What crosses the socket means the same on the other side, or is refused there."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from api.engine.framing import Frame, Kind, ProtocolError
from api.engine.messages import (
    Wish,
    describe_error,
    describe_pixels,
    pack_output,
    read_error,
    read_output,
    read_pixels,
)
from core.errors import AppError, ConflictError, DeadlineError, FieldError, InvalidError
from core.ml.backbones.load import WeightsMismatchError
from core.ml.inference.admission import OverloadedError, ProjectOverloadedError
from core.ml.inference.engine import Output

_DIGEST = "0123456789abcdef" * 4
_WISH = Wish("flowers", 2.0, "vit", (_DIGEST, _DIGEST), 3, 1.5, 900.0)


def _over_the_wire(kind: Kind, meta: dict[str, object], data: bytes) -> Frame:
    return Frame(kind, 1, json.loads(json.dumps(meta)), bytearray(data))


@pytest.mark.parametrize(
    "pixels",
    [
        np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8),
        np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32),
        np.random.default_rng(0).standard_normal((8, 8, 3)).astype(np.float32).transpose(2, 0, 1),
    ],
    ids=["uint8", "float32", "not contiguous"],
)
def test_pixels(pixels):
    meta, data = describe_pixels(pixels, 5)
    index, given = read_pixels(_over_the_wire(Kind.IMAGE, meta, bytes(data)))
    assert index == 5
    assert given.dtype == pixels.dtype
    assert given.flags.writeable, "torch warns of arrays that are not"
    np.testing.assert_array_equal(given, pixels)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"i": 0, "t": "u1", "s": [2, 2, 2]},
        {"i": 0, "t": "f4", "s": [2, 2, 3]},
        {"i": 0, "t": "O", "s": [2, 2, 3]},
        {"i": 0, "t": "u1", "s": [12]},
        {"i": 0, "t": "u1", "s": [-2, -2, 3]},
        {"i": 0, "t": "u1", "s": [2**40, 2**40, 2**40]},
        {"i": 0, "t": "u1", "s": "223"},
        {"i": "0", "t": "u1", "s": [2, 2, 3]},
        {"i": True, "t": "u1", "s": [2, 2, 3]},
    ],
)
def test_pixels_that_are_not_those_of_their_shape(meta):
    with pytest.raises(ProtocolError):
        read_pixels(_over_the_wire(Kind.IMAGE, meta, bytes(12)))


@pytest.mark.parametrize("classes", [0, 1, 7])
def test_output(classes):
    output = Output(np.arange(classes, dtype=np.float32), np.linspace(0, 1, 5, dtype=np.float32))
    given = read_output(_over_the_wire(Kind.OUTPUT, {"n": classes}, pack_output(output)))
    np.testing.assert_array_equal(given.logits, output.logits)
    np.testing.assert_array_equal(given.features, output.features)


@pytest.mark.parametrize(("meta", "data"), [({}, 8), ({"n": 3}, 8), ({"n": -1}, 8), ({"n": 1}, 7)])
def test_output_that_is_none(meta, data):
    with pytest.raises(ProtocolError):
        read_output(_over_the_wire(Kind.OUTPUT, meta, bytes(data)))


@pytest.mark.parametrize("decode_rate", [None, 12.5])
def test_wish(decode_rate):
    wish = Wish("flowers", 2.0, "vit", ("", "vit"), 3, 1.5, decode_rate)
    assert Wish.from_meta(json.loads(json.dumps(wish.to_meta()))) == wish


def _change(**changes: object) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda meta: {**meta, **changes}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: {},
        _change(images=0),
        _change(images=-1),
        _change(images="3"),
        _change(images=0.5),
        _change(timeout_s=float("nan")),
        _change(timeout_s=float("inf")),
        _change(weight=0),
        _change(project=""),
        _change(project="x" * 10_000),
        _change(backbone=None),
        _change(key=["../../etc/passwd", _DIGEST]),
        _change(key=["", "another backbone"]),
        _change(key=[_DIGEST]),
        _change(key=_DIGEST),
        _change(decode_rate="fast"),
    ],
)
def test_wish_that_is_none(spoil):
    meta = json.loads(json.dumps(_WISH.to_meta()))
    assert Wish.from_meta(meta) == _WISH
    with pytest.raises(ProtocolError):
        Wish.from_meta(spoil(meta))


@pytest.mark.parametrize(
    ("error", "family"),
    [
        (OverloadedError("full", 3.0), AppError),
        (ProjectOverloadedError("yours", 2.0), AppError),
        (DeadlineError("late"), DeadlineError),
        (WeightsMismatchError("another"), AppError),
        (ConflictError("no room", code="bank_full"), ConflictError),
        (InvalidError("no", fields=(FieldError("/3", "no", "shape_mismatch"),)), InvalidError),
    ],
)
def test_errors_keep_what_a_caller_is_told(error, family):
    given = read_error(json.loads(json.dumps(describe_error(error))))
    assert isinstance(given, family)
    assert isinstance(given, AppError)
    assert isinstance(error, type(given)), "so it has the same HTTP status"
    assert (given.code, given.message, given.fields) == (error.code, error.message, error.fields)
    assert (given.retryable, given.retry_after_s) == (error.retryable, error.retry_after_s)


@pytest.mark.parametrize("error", [ValueError("/secret/path"), AppError("no family")])
def test_others_are_internal(error):
    given = read_error(describe_error(error))
    assert isinstance(given, RuntimeError)
    assert "secret" not in str(given)
