"""Field types that several requests and answers share."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

#: An id, or a name that appears in URLs and in file names.
SLUG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
#: A model: its id, its name, or an alias or a version of its name.
MODEL_REFERENCE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[A-Za-z0-9][A-Za-z0-9._-]{0,99})?$"
#: Of a model's name. It becomes part of paths and of lists, hence short.
ALIAS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,200}$"
METADATA_KEY_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
#: NUL is the one character that PostgreSQL refuses.
METADATA_VALUE_PATTERN = r"^[^\x00]*$"
#: What the patterns say, for people.
PATTERN_MEANINGS = {
    SLUG_PATTERN: "must be 1 to 100 letters, digits, '.', '_' or '-', the first a letter or digit",
    MODEL_REFERENCE_PATTERN: "must be a model's id, its name, or name@alias",
    ALIAS_PATTERN: "must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
    IDEMPOTENCY_KEY_PATTERN: "must be 1 to 200 printable ASCII characters without spaces",
    METADATA_KEY_PATTERN: "must be 1 to 64 letters, digits, '_', '.' or '-'",
    METADATA_VALUE_PATTERN: "must not hold a NUL character",
}
MAX_SEED = 2**32 - 1

Value = TypeVar("Value")


class _AutoSchema:
    """Shows `"auto"` in the documentation; the code sees None."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        given = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
        return {"anyOf": [{"const": "auto"}, *given]}


def _none_of_auto(value: Any) -> Any:  # noqa: ANN401 - whatever JSON has there
    return None if value == "auto" else value


#: Marks `X | None` as `X | "auto"`: the value that the pair, or the service, thinks best.
AUTO = (BeforeValidator(_none_of_auto), _AutoSchema())

AutoInt = Annotated[Annotated[int, Field(strict=True)] | None, *AUTO]
AutoFloat = Annotated[Annotated[float, Field(strict=True, allow_inf_nan=False)] | None, *AUTO]


def _rate_or_auto(value: Any) -> Any:  # noqa: ANN401
    if value is None or value == "auto":
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= 1:  # NaN is refused here too
        raise ValueError("must be a number above 0, to 1, or 'auto'")
    return float(value)


#: A learning rate, or `"auto"`, which is not the same as leaving it out: it asks for a search.
RateOrAuto = Annotated[
    float | Literal["auto"] | None,
    PlainValidator(_rate_or_auto),
    WithJsonSchema(
        {"anyOf": [{"const": "auto"}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]}
    ),
]


class _NameAloneSchema:
    """Shows in the documentation that a name may stand for an object with nothing else in it."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core_schema)]}


def _object_of_name(value: Any) -> Any:  # noqa: ANN401
    return {"name": value} if isinstance(value, str) else value


#: Marks an object with a `name` as one that may be given by that name alone.
NAME_ALONE = (BeforeValidator(_object_of_name), _NameAloneSchema())

#: Name of an image in a dataset: its path inside the archive.
ItemName = Annotated[str, Field(min_length=1, max_length=1000, pattern=METADATA_VALUE_PATTERN)]


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("control characters are not allowed")
    return value


def _trimmed(limit: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        value = value.strip()
        if not 1 <= len(value) <= limit:
            raise ValueError(f"must have 1 to {limit} characters")
        return value

    return check


#: A name for people: any script, no control characters, of 1 to 200 characters.
DisplayName = Annotated[str, AfterValidator(_trimmed(200)), AfterValidator(_printable)]
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
PriorityNumber = Annotated[int, Field(strict=True, ge=-100, le=100)]


def to_unix_s(timestamp_s: float | None) -> int | None:
    """Return a time of the database in whole unix seconds."""
    return None if timestamp_s is None else int(timestamp_s)
