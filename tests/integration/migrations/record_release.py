"""Records the statements of a release, for `previous_release.py` of the next.

To be run once for each release, in its checkout, before the first revision of the next is made:

    python -m tests.integration.migrations.record_release POSTGRESQL_URL > release_NNNN.json

The URL is of an empty database. What is recorded is one life, in the order of its steps: every
statement with its parameters, as the release sends them on either database.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from core.platform.collection import references
from core.platform.collection.log import record_sweep
from core.platform.collection.turns import take_turn
from core.platform.datasets import repository as datasets
from core.platform.db.engine import Database
from core.platform.db.migrate import upgrade_to_head
from core.platform.idempotency import find_resource, remember
from core.platform.jobs import control, events, queue
from core.platform.jobs import repository as jobs
from core.platform.leases import Claim
from core.platform.models import repository as models
from core.types import DatasetId
from tests.integration.platform.rows import CRASH, SPEC, build_model

#: In every id and key, to be replaced by each life that is played back.
_LIFE = "LIFE"
_TTL_S = 3600.0


class Recorder:
    """Runs steps, each a transaction, and notes what they send."""

    def __init__(self, url: str) -> None:
        upgrade_to_head(url)
        self.database = Database(url)
        self.steps: list[dict[str, Any]] = []
        event.listen(self.database.engine, "after_cursor_execute", self._note)

    def write(self, name: str, work: Callable[[Session], Any]) -> Any:
        self.steps.append({"step": name, "begin": "", "statements": []})
        with self.database.write() as session:
            return work(session)

    def read(self, name: str, work: Callable[[Session], Any]) -> Any:
        self.steps.append({"step": name, "begin": "", "statements": []})
        with self.database.read() as session:
            return work(session)

    def _note(
        self, _connection: Any, _cursor: Any, sql: str, values: Any, _context: Any, many: bool
    ) -> None:
        if not self.steps or sql.startswith("PRAGMA") or "pg_catalog" in sql:
            return
        if sql.startswith("BEGIN"):
            self.steps[-1]["begin"] = sql
            return
        parameters = values[0] if many else values
        parameters = dict(parameters) if isinstance(parameters, dict) else list(parameters)
        self.steps[-1]["statements"].append(
            {"sql": " ".join(sql.split("\n")), "parameters": parameters}
        )


def record_life(recorder: Recorder) -> None:  # noqa: PLR0915 - one life, step by step
    """Do to a dataset and three jobs what API, supervisors and sweeps do."""
    write, read = recorder.write, recorder.read
    ids = iter(f"ftjob_{name}_{_LIFE}" for name in ("first", "second", "third"))
    jobs.new_job_id = lambda: next(ids)
    datasets.new_dataset_id = lambda: DatasetId(f"ds_{_LIFE}")
    key = (f"key {_LIFE}", "0" * 64)

    def create_dataset(session: Session) -> str:
        assert find_resource(session, *key) is None
        dataset = datasets.create_dataset(
            session, name="flowers", seed=0, archive_sha256="0" * 64, archive_bytes=1,
            archive_name="flowers.zip",
        )  # fmt: skip
        remember(session, *key, dataset.id)
        session.refresh(dataset)
        return dataset.id

    def create_job(session: Session) -> str:
        job = jobs.create_job(
            session, dataset_id=DatasetId(dataset_id), name="flowers", spec=SPEC, metadata={"a": 1}
        )
        session.refresh(job)
        return job.id

    def claim(session: Session, ttl_s: float = _TTL_S) -> Claim:
        claimed = jobs.claim_job(session, owner="old:1", ttl_s=ttl_s)
        assert claimed is not None
        return claimed

    def renew(session: Session) -> None:
        jobs.report_progress(session, attempt, ttl_s=_TTL_S, progress={"step": 1})
        events.record_epoch(session, first, 1, {"val_accuracy": 0.5})
        events.add_event(session, first, "half of it", attempt=1)

    def sweep(session: Session) -> None:
        jobs.expire_attempts(session, max_attempts=1)
        datasets.expire_attempts(session, max_attempts=1)

    dataset_id = write("create a dataset", create_dataset)
    read("find what a key created", lambda session: find_resource(session, *key))
    first = write("create a job that waits for it", create_job)
    validation = write(
        "claim the dataset", lambda s: datasets.claim_dataset(s, owner="old:1", ttl_s=_TTL_S)
    )
    write(
        "renew the dataset's lease",
        lambda s: datasets.report_progress(s, validation, ttl_s=_TTL_S, progress={"done": 1}),
    )
    write(
        "make the dataset ready",
        lambda s: datasets.mark_ready(
            s, validation, manifest_sha256="1" * 64, caches={"64": "2" * 64}, classes=["a", "b"],
            splits={"train": 2}, report={},
        ),
    )  # fmt: skip
    attempt = write("claim the job", claim)
    read("read the job", lambda s: jobs.get_dataset_of(s, jobs.get_job(s, first)))
    write("renew with progress, a figure and an event", renew)
    write(
        "record a checkpoint", lambda s: jobs.record_checkpoint(s, attempt, sha256="3" * 64, step=4)
    )
    write("give it up", lambda s: jobs.give_up_attempt(s, attempt, CRASH, max_attempts=3))
    released = write("claim it again", claim)
    write("hand it back", lambda s: jobs.release(s, released))
    write("pause it", lambda s: control.request_pause(s, first))
    write("resume it", lambda s: control.request_resume(s, first))
    last = write("claim it once more", claim)
    model = read("build its model", lambda s: build_model(s, first))
    model.id = f"mdl_{_LIFE}"
    write("publish", lambda s: jobs.publish(s, last, model))
    read("show the newest model of a name", lambda s: models.get_model(s, "flowers"))
    second = write("create another job", create_job)
    cancelled = write("claim that", claim)
    write("ask for its cancellation", lambda s: control.request_cancel(s, second))
    write("finish the cancellation", lambda s: jobs.finish_cancel(s, cancelled))
    third = write("create a third job", create_job)
    write("change its priority", lambda s: control.change_priority(s, third, 2))
    read("tell places in the queue", lambda s: queue.find_places(s, [jobs.get_job(s, third)]))
    write("claim the third", lambda s: claim(s, ttl_s=-_TTL_S))
    write("sweep", sweep)
    read("list jobs", lambda s: jobs.list_jobs(s, after=None, limit=3))
    write("take a turn", lambda s: take_turn(s, f"turn-{_LIFE}", interval_s=600))
    write(
        "write the sweep down",
        lambda s: record_sweep(s, owner="old:1", duration_s=1.0, counts={"a": 1}, faults={}),
    )
    read("look which blobs are named", lambda s: references.is_referenced(s, "a" * 64))
    write("delete the model", lambda s: models.delete_model(s, model.id))
    write("delete the dataset", lambda s: datasets.delete_dataset(s, dataset_id))


def main(postgresql_url: str) -> None:
    recorded = {}
    with tempfile.TemporaryDirectory() as folder:
        urls = {"sqlite": f"sqlite:///{folder}/idat.db", "postgresql": postgresql_url}
        for kind, url in urls.items():
            recorder = Recorder(url)
            record_life(recorder)
            recorder.database.dispose()
            recorded[kind] = recorder.steps
    # Json objects of the driver: as the text that it would send.
    json.dump(recorded, sys.stdout, indent=1, default=lambda value: json.dumps(value.obj))


if __name__ == "__main__":
    main(sys.argv[1])
