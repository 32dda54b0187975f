"""Time as the database sees it.

Leases are compared on this clock only, so a worker whose own clock is wrong can neither steal a
live lease nor keep a dead one.
"""

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class db_now(FunctionElement[float]):  # noqa: N801 - reads as the SQL function that it is
    """Unix seconds with fractions, taken when the statement runs, not at the BEGIN."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite(_element: db_now, _compiler: SQLCompiler, **_kw: Any) -> str:  # noqa: ANN401
    # unixepoch('subsec') would read better but needs SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql(_element: db_now, _compiler: SQLCompiler, **_kw: Any) -> str:  # noqa: ANN401
    return "extract(epoch from clock_timestamp())::double precision"
