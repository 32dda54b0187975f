"""Schemas of bodies that FastAPI does not read itself, for the documentation."""

from typing import Any

from pydantic import BaseModel

_REFERENCE = "$ref"


def inline_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema with the schemas that it refers to written out in place.

    A reference would have to point into the components of the whole document, where only the
    bodies are that FastAPI reads. The model must not refer to itself.
    """
    schema = model.model_json_schema(ref_template="{model}")
    definitions = schema.pop("$defs", {})
    inlined: dict[str, Any] = _inline(schema, definitions)
    return inlined


def _inline(part: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever JSON holds
    if isinstance(part, list):
        return [_inline(item, definitions) for item in part]
    if not isinstance(part, dict):
        return part
    if _REFERENCE in part:
        others = {name: value for name, value in part.items() if name != _REFERENCE}
        part = {**definitions[part[_REFERENCE]], **others}
    return {name: _inline(value, definitions) for name, value in part.items()}
