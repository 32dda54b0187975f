"""No column that names blobs is forgotten: what nobody lists is taken for garbage."""

from sqlalchemy import ClauseElement
from sqlalchemy.dialects import sqlite

from core.platform.collection import references
from core.platform.db.base import Base
from core.platform.db.tables import ModelRow

#: Columns of digests that name something else than a blob.
NOT_BLOBS = {"idempotency_keys.request_sha256"}
#: Columns of JSON that hold digests of blobs.
IN_JSON = {"datasets.caches", "models.figures"}


class Asked:
    """A session that only remembers the statements."""

    def __init__(self) -> None:
        self.text = ""

    def execute(self, statement: ClauseElement) -> "Asked":
        self.text += f"{statement.compile(dialect=sqlite.dialect())}\n"
        return self

    def first(self) -> None:
        return None

    def __iter__(self):
        return iter(())


def columns_of_blobs() -> set[str]:
    named = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if column.name.endswith("sha256")
    }
    return (named - NOT_BLOBS) | IN_JSON


def test_the_mark_reads_every_column() -> None:
    asked = Asked()
    references.read_references(asked)
    assert [column for column in columns_of_blobs() if column not in asked.text] == []


def test_the_last_look_reads_every_column() -> None:
    asked = Asked()
    assert not references.is_referenced(asked, "0" * 64)
    assert [column for column in columns_of_blobs() if column not in asked.text] == []


def test_a_models_digests_are_those_of_its_columns_and_figures() -> None:
    digests = {kind: kind[0] * 64 for kind in ("adapter", "bonfig", "card", "evaluation")}
    model = ModelRow(
        adapter_sha256=digests["adapter"],
        config_sha256=digests["bonfig"],
        card_sha256=digests["card"],
        evaluation_sha256=digests["evaluation"],
        figures={"tsne": {"status": "ready", "json_sha256": "1" * 64, "png_sha256": None}},
    )
    assert sorted(references.list_model_digests(model)) == sorted([*digests.values(), "1" * 64])
    model.evaluation_sha256 = model.figures = None
    assert len(references.list_model_digests(model)) == 3
