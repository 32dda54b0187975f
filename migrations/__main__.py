"""`python -m migrations [upgrade | downgrade REVISION | current]` on the configured database."""

import argparse
import sys

from core.platform.db.engine import Database
from core.platform.db.migrate import downgrade_to, find_revision, head_revision, upgrade_to_head
from core.settings import Settings


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m migrations", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("upgrade", help="run all revisions that are missing (the default)")
    downgrade = commands.add_parser("downgrade", help="undo revisions")
    downgrade.add_argument("revision", help="where to stop; 'base' drops every table")
    commands.add_parser("current", help="print the database's revision and the newest one")
    options = parser.parse_args(arguments)

    url = Settings().resolved_database_url
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
