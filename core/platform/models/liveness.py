"""Which models there are: those that are not deleted, and imported ones.

An imported model has no job. Processes of the release before cannot show such a row: one of them
would break every list it is in. They pass over rows with a deletion date, and keep a deleted
model's files and row until some time after that date. So an imported model has one that never
comes: they do not see it, and free nothing of it.
"""

from sqlalchemy import ColumnElement, or_

from core.platform.db.tables import ModelRow

#: Deletion date of imported models: the end of the year 9999.
NEVER_S = 253_402_300_799.0


def is_alive(model: type[ModelRow] = ModelRow) -> ColumnElement[bool]:
    """Return the condition that a model has not been deleted.

    Args:
        model: the table, or an alias of it.
    """
    return or_(model.deleted_at.is_(None), model.deleted_at == NEVER_S)
