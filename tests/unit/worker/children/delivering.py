"""A worker that sends what is due, to be killed while it waits for a receiver."""

import os
import sys

from core.platform.db.engine import Database
from core.platform.webhooks.addresses import AllowedHosts
from worker.deliver import Sender, send_due

if __name__ == "__main__":
    sender = Sender(
        Database(sys.argv[1]),
        owner=f"killed:{os.getpid()}",
        allowed=AllowedHosts.from_settings(["127.0.0.1"]),
    )
    send_due(sender, threads=1, should_stop=lambda: False)
