"""A process that supervises a hanging child: `python -m … DATABASE_URL WORKDIR`."""

import sys
from pathlib import Path
from typing import Any

from core.clock import monotonic_s
from core.platform.db.engine import Database
from worker.ending import Limits
from worker.supervisor import Supervisor, Write


def main() -> None:
    database, workdir = Database(sys.argv[1]), Path(sys.argv[2])

    def take(message: dict[str, Any]) -> list[Write]:
        (workdir / "pid").write_text(f"{message['pid']}\n")
        return []

    Supervisor(
        "tests.unit.worker.children.scripted",
        workdir,
        database=database,
        renew=lambda _session, _progress: "running",
        renewed_s=monotonic_s(),
        limits=Limits(heartbeat_s=1, fence_s=300, progress_timeout_s=300),
        is_draining=lambda: False,
        on_message=take,
    ).run({"script": "hang"})


if __name__ == "__main__":
    main()
