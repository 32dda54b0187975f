"""`python -m worker`: start a worker with the options that this project needs."""

import argparse
import sys
import uuid

from pydantic import ValidationError

from core.platform.storage.errors import StoreMisconfiguredError
from core.platform.storage.factory import check_store
from core.settings import Settings, describe_wrong_settings


def main() -> int:
    """Check the settings, then hand over to Celery."""
    parser = argparse.ArgumentParser(
        prog="python -m worker",
        description="Run a worker: it validates datasets and trains jobs. Configured by IDAT_* "
        "variables (see docs/configuration.md); SIGTERM hands the running job back and exits.",
    )
    parser.parse_args()
    try:
        settings = Settings()
        check_store(settings)
    except ValidationError as error:
        return _refuse(describe_wrong_settings(error))
    except StoreMisconfiguredError as error:
        return _refuse(str(error))
    from worker.app import app  # noqa: PLC0415 - reads the settings, checked above

    name = f"idat-{uuid.uuid4().hex[:8]}@%h"
    options = ["--pool=prefork", f"--loglevel={settings.log_level}", f"--hostname={name}"]
    # What workers tell each other, nobody here reads; and where the broker is frozen, the heartbeat
    # keeps the main process in an endless try to connect, deaf to SIGTERM.
    options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["--quiet", "worker", *options])
    return 0


def _refuse(reason: str) -> int:
    sys.stderr.write(f"idat worker: {reason}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
