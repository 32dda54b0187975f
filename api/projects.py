"""`python -m api.projects`: what an operator sees and changes of projects.

It writes to the database alone. Keys, and with them the projects that there are, stand in
`IDAT_API_KEYS`; a project without a row has the defaults.
"""

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from core.errors import InvalidError
from core.platform.db.engine import Database
from core.platform.projects.repository import (
    MAX_WEIGHT,
    MIN_WEIGHT,
    ProjectLoad,
    change_project,
    list_loads,
)
from core.settings import Settings, describe_wrong_settings

_COLUMNS = ("project", "weight", "max running", "running", "queued", "waiting for dataset")
_DEFAULT = "default"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = _build_parser()
    given = parser.parse_args(arguments)
    try:
        settings = Settings()
    except ValidationError as error:
        return _refuse(describe_wrong_settings(error))
    database = Database(settings.resolved_database_url)
    try:
        if given.command == "set":
            changes = _read_changes(given)
            if not changes:
                return _refuse("nothing to set: give --max-running, --weight or both")
            with database.write() as session:
                change_project(session, given.name, changes)
        with database.read() as session:
            loads = list_loads(session)
    except InvalidError as error:
        return _refuse(error.message)
    except SQLAlchemyError as error:
        return _refuse(f"the database failed: {error}")
    finally:
        database.dispose()
    sys.stdout.write(_draw(loads, settings.max_running_jobs))
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m api.projects",
        description="Show projects, and change their limits and shares. Reads IDAT_DATABASE_URL "
        "and IDAT_DATA_DIR, as the service does; a change holds from the next claim on.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|set")
    commands.add_parser("list", help="show the projects that have had jobs or own numbers")
    change = commands.add_parser("set", help="give a project other numbers, then show all")
    change.add_argument("name", help="of the project, as in IDAT_API_KEYS")
    change.add_argument(
        "--max-running",
        metavar="N",
        help="jobs that it may have running at once: a number, 0 for any number, or 'default' for "
        "what IDAT_MAX_RUNNING_JOBS says",
    )
    change.add_argument(
        "--weight",
        type=float,
        metavar="W",
        help=f"its share of the workers, relative to others' (they begin with 1); {MIN_WEIGHT} to "
        f"{MAX_WEIGHT:.0f}",
    )
    return parser


def _read_changes(given: argparse.Namespace) -> dict[str, float | int | None]:
    """Return the columns to change.

    Raises:
        InvalidError: the limit is no number.
    """
    changes: dict[str, float | int | None] = {}
    if given.weight is not None:
        changes["weight"] = given.weight
    if given.max_running == _DEFAULT:
        changes["max_running_jobs"] = None
    elif given.max_running is not None:
        if not (given.max_running.isascii() and given.max_running.isdigit()):
            raise InvalidError(
                f"--max-running takes a number or 'default', not {given.max_running!r}"
            )
        changes["max_running_jobs"] = int(given.max_running)
    return changes


def _draw(loads: Sequence[ProjectLoad], default_limit: int) -> str:
    rows = [_COLUMNS, *(_describe(load, default_limit) for load in loads)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def _describe(load: ProjectLoad, default_limit: int) -> tuple[str, ...]:
    own = load.max_running_jobs
    limit = str((default_limit if own is None else own) or "any")
    if own is None:
        limit += " (default)"
    counts = (load.running, load.queued, load.waiting_for_dataset)
    return (load.name, f"{load.weight:g}", limit, *map(str, counts))


def _refuse(reason: str) -> int:
    sys.stderr.write(f"idat projects: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
