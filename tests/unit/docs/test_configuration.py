"""docs/configuration.md says what core/settings.py does: variables, defaults, meanings."""

import json
import re
from pathlib import Path

import pytest

from core.settings import Settings

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"
ROW = re.compile(r"^\| `IDAT_(?P<name>\w+)` \| (?P<default>.+?) \| (?P<meaning>.+?) \| .+? \|$")
NOT_SETTINGS = {"test_database_url", "test_redis_url"}


def read_rows():
    """Return (default, meaning) of each documented variable by field name."""
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if match := ROW.match(line):
            name = match["name"].lower()
            assert name not in rows, f"{name} is listed twice"
            rows[name] = (match["default"], match["meaning"])
    return rows


def as_written(value):
    """Return a default as one would write it into the environment."""
    if isinstance(value, list):
        value = ",".join(value)
    return "*(empty)*" if value in (None, "") else f"`{value}`"


def test_every_setting_is_documented_and_nothing_else():
    assert read_rows().keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_default_and_meaning_are_those_of_the_code(name):
    field = Settings.model_fields[name]
    assert field.description, "every setting says what it means"

    expected = (as_written(field.get_default(call_default_factory=True)), field.description)

    assert read_rows()[name] == expected


@pytest.mark.parametrize("name", Settings.model_fields)
def test_documented_default_means_the_default(name, monkeypatch):
    for other in Settings.model_fields:
        monkeypatch.delenv(f"IDAT_{other.upper()}", raising=False)
    untouched = Settings()
    default = read_rows()[name][0].strip("`")
    if default != "*(empty)*":
        monkeypatch.setenv(f"IDAT_{name.upper()}", default)

    assert json.loads(Settings().model_dump_json()) == json.loads(untouched.model_dump_json())


def test_variables_named_in_the_text_exist():
    mentioned = set(re.findall(r"IDAT_([A-Z0-9_]+[A-Z0-9])", PAGE.read_text(encoding="utf-8")))

    assert {name.lower() for name in mentioned} - NOT_SETTINGS == Settings.model_fields.keys()
