"""What the frames say: wishes for images, outputs, and errors that cross the socket."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api.engine.framing import Frame, ProtocolError
from core.errors import (
    AppError,
    ConflictError,
    DeadlineError,
    FieldError,
    InvalidError,
    NotFoundError,
    RateLimitedError,
    StorageFullError,
    TooLargeError,
    UnavailableError,
)
from core.ml.inference.engine import Output

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 256
_DTYPES: dict[str, np.dtype[Any]] = {"u1": np.dtype(np.uint8), "f4": np.dtype("<f4")}
#: Errors cross by the family that decides their status; leaves by their code.
_FAMILIES: dict[str, type[AppError]] = {
    family.__name__: family
    for family in (
        NotFoundError, ConflictError, TooLargeError, RateLimitedError, UnavailableError,
        DeadlineError, StorageFullError, InvalidError,
    )
}  # fmt: skip


@dataclass(frozen=True)
class Wish:
    """What a front books.

    Attributes:
        project: whose turn the images take.
        weight: its share relative to others'.
        backbone: timm name.
        key: digests of adapter and config; ("", backbone) for the bare network.
        images: how many, at least 1.
        timeout_s: how long anybody waits for the answers.
        decode_rate: images a second that the front's threads decode; None if not known yet.
    """

    project: str
    weight: float
    backbone: str
    key: tuple[str, str]
    images: int
    timeout_s: float
    decode_rate: float | None = None

    def to_meta(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "project": self.project,
            "weight": self.weight,
            "backbone": self.backbone,
            "key": self.key,
            "images": self.images,
            "timeout_s": self.timeout_s,
            "decode_rate": self.decode_rate,
        }

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> "Wish":
        """Return what a front has sent.

        Raises:
            ProtocolError: it is not a wish.
        """
        try:
            rate = meta["decode_rate"]
            wish = cls(
                project=_read_name(meta["project"]),
                weight=_read_positive(meta["weight"]),
                backbone=_read_name(meta["backbone"]),
                key=read_key(meta["key"], meta["backbone"]),
                images=int(_read_positive(meta["images"])),
                timeout_s=_read_positive(meta["timeout_s"]),
                decode_rate=None if rate is None else _read_positive(rate),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"a booking cannot be read: {error}") from error
        if wish.images < 1:
            raise ProtocolError("a booking for no image")
        return wish


def read_key(given: object, backbone: object) -> tuple[str, str]:
    """Return the key of a model: two digests, or ("", backbone).

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, list) and len(given) == 2 and all(isinstance(g, str) for g in given):  # noqa: PLR2004 - a pair
        adapter, config = given
        if (adapter == "" and config == backbone) or (
            _DIGEST.fullmatch(adapter) and _DIGEST.fullmatch(config)
        ):
            return (adapter, config)
    raise ValueError("a model's key is two digests")


def describe_pixels(pixels: NDArray[Any], index: int) -> tuple[dict[str, Any], memoryview]:
    """Return the meta and the data of an image.

    Args:
        pixels: uint8 (px, px, 3) or float32 (3, px, px).
        index: its place in the call.
    """
    dtype = "u1" if pixels.dtype == np.uint8 else "f4"
    flat = np.ascontiguousarray(pixels, dtype=_DTYPES[dtype])
    return {"i": index, "t": dtype, "s": list(flat.shape)}, flat.data.cast("B")


def read_pixels(frame: Frame) -> tuple[int, NDArray[Any]]:
    """Return an image's place in its call, and its pixels.

    Raises:
        ProtocolError: the bytes are not those of the shape.
    """
    try:
        index, dtype = frame.meta["i"], _DTYPES[frame.meta["t"]]
        shape = [int(_read_positive(side)) for side in frame.meta["s"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"an image cannot be read: {error}") from error
    is_image = type(index) is int and len(shape) == 3  # noqa: PLR2004 - height, width, colours
    if not is_image or math.prod(shape) * dtype.itemsize != len(frame.data):
        raise ProtocolError("the bytes of an image are not those of its shape")
    return index, np.frombuffer(frame.data, dtype).reshape(shape)


def pack_output(output: Output) -> bytes:
    """Return logits and features as little-endian float32, one behind the other."""
    return output.logits.astype("<f4").tobytes() + output.features.astype("<f4").tobytes()


def read_output(frame: Frame) -> Output:
    """Return an output; the meta says how many of its numbers are logits.

    Raises:
        ProtocolError: it is none.
    """
    try:
        numbers = np.frombuffer(frame.data, "<f4")
        classes = int(frame.meta["n"])
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(f"an output cannot be read: {error}") from error
    if not 0 <= classes <= len(numbers):
        raise ProtocolError("an output has fewer numbers than classes")
    return Output(numbers[:classes], numbers[classes:])


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an error as JSON; of an unexpected one only that there was one."""
    if not isinstance(error, AppError):
        return {}
    families = [base.__name__ for base in type(error).__mro__ if base.__name__ in _FAMILIES]
    return {
        "family": families[0] if families else "",
        "code": error.code,
        "message": error.message,
        "retry_after_s": error.retry_after_s,
        "fields": [asdict(field) for field in error.fields],
    }


def read_error(meta: Mapping[str, Any]) -> Exception:
    """Return the error that the engine has described."""
    family = _FAMILIES.get(str(meta.get("family")))
    if family is None:
        return RuntimeError("the engine process failed; its log says why")
    fields = tuple(FieldError(**field) for field in meta.get("fields", ()))
    error = family(str(meta["message"]), code=str(meta["code"]), fields=fields)
    error.retry_after_s = meta.get("retry_after_s")
    return error


def _read_name(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME:
        raise ValueError("a name is missing, or too long")
    return value


def _read_positive(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is missing")
    if not (math.isfinite(value) and value > 0):
        raise ValueError("a number is not positive")
    return value
