"""`python -m migrations [upgrade | downgrade REVISION | current]` on the configured database."""

import argparse
import sys

from pydantic import ValidationError

from core.platform.db.engine import Database
from core.platform.db.migrate import downgrade_to, find_revision, head_revision, upgrade_to_head
from core.settings import Settings, describe_wrong_settings


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m migrations",
        description="Bring the schema of the database to a revision: of IDAT_DATABASE_URL, or else "
        "of the SQLite file in IDAT_DATA_DIR.",
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("upgrade", help="run all revisions that are missing (the default)")
    downgrade = commands.add_parser("downgrade", help="undo revisions")
    downgrade.add_argument("revision", help="where to stop; 'base' drops every table")
    commands.add_parser("current", help="print the database's revision and the newest one")
    options = parser.parse_args(arguments)

    try:
        url = Settings().resolved_database_url
    except ValidationError as error:
        print(f"idat migrations: {describe_wrong_settings(error)}", file=sys.stderr)  # noqa: T201
        return 2
    if options.command == "downgrade":
        downgrade_to(url, options.revision)
    elif options.command == "current":
        database = Database(url)
        with database.read() as session:
            print(f"{find_revision(session) or 'empty'} (newest: {head_revision()})")  # noqa: T201
        database.dispose()
    else:
        upgrade_to_head(url)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
