"""`python -m embedded up`: the whole service on this machine, in the foreground.

Starts the API and one worker, on SQLite and a folder unless the settings (environment, `IDAT_…`)
say otherwise, restarts what dies, and stops everything on Ctrl-C. Run it from the checkout's top
folder.
"""

import argparse
import os
import sys

from pydantic import ValidationError

from core.errors import AppError
from core.settings import Settings, describe_wrong_settings
from embedded.address import Address, choose_address
from embedded.lock import DataDirLock
from embedded.stack import STOP_GRACE_S, Stack

_WRONG_SETTINGS = 2


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m embedded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start the stack and stay in the foreground")
    up.add_argument(
        "--quiet",
        action="store_true",
        help="do not repeat the log lines of API and worker on standard error",
    )
    options = parser.parse_args(arguments)
    return _up(echo_logs=not options.quiet)


def _up(*, echo_logs: bool) -> int:
    try:
        settings = Settings()
        lock = DataDirLock(settings.data_dir.resolve())
        lock.acquire(timeout_s=STOP_GRACE_S + 5, say=_complain)
        address = choose_address(settings)
    except ValidationError as error:
        _complain(describe_wrong_settings(error))
        return _WRONG_SETTINGS
    except (AppError, OSError) as error:
        _complain(str(error))
        return _WRONG_SETTINGS
    stack = Stack(settings, address, lock, pid=os.getpid(), echo_logs=echo_logs)
    return stack.run(lambda: print(_describe(settings, address), flush=True))


def _describe(settings: Settings, address: Address) -> str:
    data_dir = settings.data_dir.resolve()
    if settings.api_keys:
        key = "one of IDAT_API_KEYS, sent as 'Authorization: Bearer KEY'"
        header = ' -H "Authorization: Bearer $KEY"'
    else:
        key = "none needed: only this machine can reach it (IDAT_API_KEYS sets one)"
        header = ""
    lines = [
        "",
        "iDAT is ready.",
        f"  API      {address.url}" + (f"   ({address.note})" if address.note else ""),
        f"  Docs     {address.url}/docs",
        f"  API key  {key}",
        f"  Data     {data_dir}",
        f"  Logs     {data_dir / 'logs'}",
        f"  Try      curl -s{header} {address.url}/v1/datasets",
        "Ctrl-C stops it.",
        "",
    ]
    return "\n".join(lines)


def _complain(message: str) -> None:
    print(f"idat   | {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
