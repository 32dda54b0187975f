"""Claims jobs until none waits: `python -m … DATABASE_URL OWNER GO_FILE`; prints what it claimed.

Each claim is at once given back, published or left alone, so that the queue changes under the
others in every way that it can.
"""

import sys
import time
from pathlib import Path

from core.platform.db.engine import Database
from core.platform.jobs.attempts import publish, release
from core.platform.jobs.claiming import claim_job
from tests.integration.platform.rows import TTL_S, build_model


def main(url: str, owner: str, go_file: Path) -> None:
    database = Database(url)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not go_file.exists():
        time.sleep(0.001)
    while True:
        with database.write() as session:
            claim = claim_job(session, owner=owner, ttl_s=TTL_S)
        if claim is None:
            return
        sys.stdout.write(f"{claim.row_id} {claim.attempt}\n")
        with database.write() as session:
            if claim.attempt == 1 and claim.row_id[-1] in "02468ace":
                release(session, claim)
            else:
                publish(session, claim, build_model(session, claim.row_id))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
