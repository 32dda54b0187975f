"""The four forms of an MLflow request."""

from typing import Any

import pytest

from api.mlflow_inputs import list_texts
from api.schemas.invocations import InvocationsBody
from core.errors import InvalidError


def _list(body: dict[str, Any]) -> tuple[list[str], list[str]]:
    return list_texts(InvocationsBody.model_validate(body))


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (
            {"dataframe_split": {"columns": ["image"], "data": [["a"], ["b"]], "index": [0, 1]}},
            ["/dataframe_split/data/0/0", "/dataframe_split/data/1/0"],
        ),
        (
            {"dataframe_split": {"columns": ["id", "image"], "data": [[1, "a"], [2, "b"]]}},
            ["/dataframe_split/data/0/1", "/dataframe_split/data/1/1"],
        ),
        (
            {"dataframe_records": [{"picture": "a"}, {"picture": "b"}]},
            ["/dataframe_records/0/picture", "/dataframe_records/1/picture"],
        ),
        ({"instances": ["a", "b"]}, ["/instances/0", "/instances/1"]),
        (
            {"instances": [{"b64": "a"}, {"image": "b", "id": 3}]},
            ["/instances/0/b64", "/instances/1/image"],
        ),
        ({"inputs": ["a", "b"]}, ["/inputs/0", "/inputs/1"]),
        ({"inputs": [["a"], ["b"]]}, ["/inputs/0/0", "/inputs/1/0"]),
        ({"inputs": {"image": ["a", "b"]}}, ["/inputs/image/0", "/inputs/image/1"]),
    ],
)
def test_each_form_gives_its_images_and_their_places(
    body: dict[str, Any], pointers: list[str]
) -> None:
    assert _list(body) == (["a", "b"], pointers)


@pytest.mark.parametrize("inputs", ["a", {"image": "a"}])
def test_one_image_needs_no_list(inputs: object) -> None:
    assert _list({"inputs": inputs})[0] == ["a"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "exactly one"),
        ({"inputs": "a", "instances": ["a"]}, "exactly one"),
        ({"instances": [1]}, "/instances/0 must be a string"),
        ({"inputs": [["a", "b"]]}, "/inputs/0 must be a string"),
        ({"instances": [{"x": "a", "y": "b"}]}, "/instances/0 must have a column"),
        ({"instances": [{}]}, "/instances/0 must have a column"),
        ({"dataframe_split": {"columns": [], "data": []}}, "/dataframe_split/columns must have"),
        (
            {"dataframe_split": {"columns": ["a", "image"], "data": [["x"]]}},
            "/dataframe_split/data/0 has 1 values for 2 columns",
        ),
    ],
)
def test_everything_else_is_refused_and_its_place_named(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        _list(body)
