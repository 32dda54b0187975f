"""The images of an MLflow scoring request, in whichever of the four forms they came."""

from collections.abc import Iterable, Sequence
from typing import Any

from api.schemas.invocations import InvocationsBody, SplitFrame
from core.errors import FieldError, InvalidError

_FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
#: Column, or key, that holds the image where there are others beside it.
_IMAGE = "image"


def list_texts(body: InvocationsBody) -> tuple[list[str], list[str]]:
    """Return the images in base64, and each one's pointer into the body.

    Raises:
        InvalidError: not exactly one form, or something else than a text where an image should be.
    """
    given = [form for form in _FORMS if getattr(body, form) is not None]
    if len(given) != 1:
        raise InvalidError(f"give exactly one of {', '.join(_FORMS)}; there are {given}")
    if body.dataframe_split is not None:
        found = _list_split(body.dataframe_split)
    elif body.dataframe_records is not None:
        found = _list_items(body.dataframe_records, "/dataframe_records")
    elif body.instances is not None:
        found = _list_items(body.instances, "/instances")
    else:
        found = _list_inputs(body.inputs)
    pairs = [(_check_text(value, pointer), pointer) for value, pointer in found]
    return [text for text, _ in pairs], [pointer for _, pointer in pairs]


def _list_split(frame: SplitFrame) -> Iterable[tuple[Any, str]]:
    column = _choose(frame.columns, "/dataframe_split/columns")
    place = frame.columns.index(column)
    for index, row in enumerate(frame.data):
        pointer = f"/dataframe_split/data/{index}"
        if len(row) != len(frame.columns):
            raise _wrong(pointer, f"has {len(row)} values for {len(frame.columns)} columns")
        yield row[place], f"{pointer}/{place}"


def _list_items(items: Sequence[Any], pointer: str) -> Iterable[tuple[Any, str]]:
    for index, item in enumerate(items):
        place = f"{pointer}/{index}"
        if isinstance(item, dict):
            key = _choose(list(item), place)
            yield item[key], f"{place}/{key}"
        elif isinstance(item, list) and len(item) == 1:  # a row of one column
            yield item[0], f"{place}/0"
        else:
            yield item, place


def _list_inputs(inputs: Any) -> Iterable[tuple[Any, str]]:  # noqa: ANN401 - whatever JSON has there
    if isinstance(inputs, dict):
        key = _choose(list(inputs), "/inputs")
        column = inputs[key]
        return _list_items(column if isinstance(column, list) else [column], f"/inputs/{key}")
    if isinstance(inputs, list):
        return _list_items(inputs, "/inputs")
    return [(inputs, "/inputs")]


def _choose(names: Sequence[str], pointer: str) -> str:
    if _IMAGE in names:
        return _IMAGE
    if len(names) != 1:
        raise _wrong(pointer, f"must have a column {_IMAGE!r}, or only one; it has {list(names)}")
    return names[0]


def _check_text(value: object, pointer: str) -> str:
    if not isinstance(value, str):
        raise _wrong(pointer, "must be a string: an image in base64")
    return value


def _wrong(pointer: str, message: str) -> InvalidError:
    return InvalidError(f"{pointer} {message}", fields=(FieldError(pointer, message),))
