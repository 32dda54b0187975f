"""A bundle that comes from outside: checked for more than one that this service wrote itself.

Nothing here runs what it reads. Pickles, and what else can, are told by their first bytes.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from core.catalog.backbones import get_backbone
from core.errors import UnsupportedTypeError
from core.ml.export.bundle import CONFIG_FILE, Bundle, InvalidBundleError, parse_bundle

#: First bytes of files that hold weights in formats that are not read here.
_FOREIGN_STARTS = (
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
    (b"PK\x03\x04", "a zip, as torch.save writes it"),
    (b"\x89HDF", "HDF5"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"GGUF", "GGUF"),
)
_MAX_CLASSES = 100_000
_MAX_LABEL_CHARACTERS = 1000
#: The table's numbers went through text.
_TOLERANCE = 1e-6


class UnsupportedModelFormatError(UnsupportedTypeError):
    """The file is of a format that can run code when it is read, or that is not read here."""

    code = "unsupported_model_format"


def check_format(start: bytes, name: str) -> None:
    """Refuse a weights file by its first bytes.

    Args:
        start: of the file, eight bytes or more.
        name: of the file, for the message.

    Raises:
        UnsupportedModelFormatError: it is of another format.
    """
    for magic, what in _FOREIGN_STARTS:
        if start.startswith(magic):
            raise UnsupportedModelFormatError(
                f"{name} is {what}; only safetensors are read here, as "
                "GET /v1/models/{id}/adapter sends them"
            )


def parse_import(adapter: bytes, config: bytes) -> Bundle:
    """Check the two files of a bundle from anywhere.

    Raises:
        UnsupportedModelFormatError: the adapter is a pickle or the like; it has not been read.
        UnknownBackboneError: its network is not one that this service knows.
        InvalidBundleError: a file is malformed or contradicts the other, or the network's facts.
        AdapterStateError: tensors are missing, unknown, misshapen or not finite.
    """
    check_format(adapter[:8], "the adapter")
    fields = _read_config(config)
    network = fields.get("backbone")
    if not isinstance(network, dict) or not isinstance(network.get("name"), str):
        raise InvalidBundleError(f"{CONFIG_FILE} does not name a backbone")
    get_backbone(network["name"])
    bundle = parse_bundle(adapter, config)
    _check_normalisation(bundle)
    _check_labels(bundle)
    _check_description(fields)
    return bundle


def _read_config(config: bytes) -> dict[str, Any]:
    """Return the fields; refuse what JSON does not have and no database takes.

    `json` reads NaN, infinities, numbers beyond a float's range, and half of a surrogate pair.
    """
    try:
        fields = json.loads(config.decode(), parse_constant=_refuse_constant)
        texts = list(_walk(fields))
    except (ValueError, RecursionError) as error:
        raise InvalidBundleError(f"{CONFIG_FILE} is not JSON in UTF-8: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidBundleError(f"{CONFIG_FILE} is not a JSON object")
    for text in texts:
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            raise InvalidBundleError(f"{CONFIG_FILE} holds text that is not valid Unicode, or NUL")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _walk(value: Any) -> Iterator[str]:  # noqa: ANN401 - whatever JSON has
    """Yield every text of a JSON value, keys too; refuse numbers that are not finite."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is beyond the range of a float")
    elif isinstance(value, list):
        for part in value:
            yield from _walk(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from _walk(part)


def _check_normalisation(bundle: Bundle) -> None:
    facts, given = get_backbone(bundle.backbone.name), bundle.backbone
    numbers = zip((*facts.mean, *facts.std), (*given.mean, *given.std), strict=True)
    if any(abs(known - told) > _TOLERANCE for known, told in numbers):
        raise InvalidBundleError(
            f"{given.name} takes images with mean {list(facts.mean)} and standard deviation "
            f"{list(facts.std)}, not {list(given.mean)} and {list(given.std)}"
        )


def _check_labels(bundle: Bundle) -> None:
    if len(bundle.classes) > _MAX_CLASSES:
        raise InvalidBundleError(f"{len(bundle.classes)} classes are more than {_MAX_CLASSES}")
    for label in bundle.classes:
        if not 1 <= len(label) <= _MAX_LABEL_CHARACTERS:
            raise InvalidBundleError(
                f"a class name must have 1 to {_MAX_LABEL_CHARACTERS} characters"
            )


def _check_description(fields: Mapping[str, Any]) -> None:
    """Check what the model card is made of."""
    for name in ("recipe", "metrics", "versions"):
        if not isinstance(fields.get(name), dict):
            raise InvalidBundleError(f"{CONFIG_FILE} has no object {name!r}")
    if not isinstance(fields.get("trainable_parameters"), int):
        raise InvalidBundleError(f"{CONFIG_FILE} does not say its trainable_parameters")
    classes = fields["classes"]
    if not isinstance(classes, list) or not all(isinstance(label, str) for label in classes):
        raise InvalidBundleError(f"{CONFIG_FILE} has classes that are not a list of texts")
    teacher = fields.get("teacher")
    if teacher is not None and not (
        isinstance(teacher, dict) and isinstance(teacher.get("name"), str)
    ):
        raise InvalidBundleError(f"{CONFIG_FILE} has a teacher without a name")
