"""What an attempt keeps and publishes, with the database failing at the worst moment."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core.clock import monotonic_s
from core.platform.db.engine import Database
from core.platform.jobs import control
from core.platform.leases import LeaseLostError
from core.settings import Settings
from tests.integration.platform.rows import add_job, claim, job_of, lose, models_of, pause
from worker.ending import Ending, Limits, Outcome
from worker.runtime import Runtime
from worker.supervisor import Supervisor
from worker.training import TrainingAttempt

BROKEN = OperationalError("COMMIT", None, ConnectionError("cut"))
DONE = Outcome(Ending.DONE, {"type": "done", "metrics": {"test_accuracy": 0.5}})


class BreakingDatabase(Database):
    """A database whose next transactions break, before or after their commit."""

    before_commit = 0
    after_commit = 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        with super().write() as session:
            yield session
            if self.before_commit:
                self.before_commit -= 1
                raise BROKEN
        if self.after_commit:
            self.after_commit -= 1
            raise BROKEN


@pytest.fixture
def runtime(tmp_path: Path, sqlite_url: str) -> Iterator[Runtime]:
    settings = Settings.model_validate({"data_dir": tmp_path / "data", "database_url": sqlite_url})
    runtime = Runtime(settings)
    runtime.database.dispose()
    runtime.database = BreakingDatabase(sqlite_url)
    yield runtime
    runtime.database.dispose()


@pytest.fixture
def database(runtime: Runtime) -> BreakingDatabase:
    assert isinstance(runtime.database, BreakingDatabase)
    return runtime.database


@pytest.fixture
def attempt(runtime: Runtime) -> TrainingAttempt:
    add_job(runtime.database)
    return TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s())


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    out = tmp_path / "workdir" / "out"
    out.mkdir(parents=True)
    (out / "adapter.safetensors").write_bytes(b"adapter")
    (out / "config.json").write_text(
        json.dumps({"backbone": {"name": "starter"}, "classes": ["a", "b"]})
    )
    (out / "README.md").write_text("card")
    (out / "evaluation.json").write_text('{"split": "test"}')
    return out.parent


def draw(workdir: Path, name: str, document: dict[str, str], png: bytes | None = None) -> None:
    folder = workdir / "out" / "figures"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document))
    if png is not None:
        (folder / f"{name}.png").write_bytes(png)


def conclude(attempt: TrainingAttempt, workdir: Path, *, time_to_fence_s: float = 100) -> None:
    attempt._conclude(DONE, supervise(attempt, workdir, time_to_fence_s), workdir)


def supervise(attempt: TrainingAttempt, workdir: Path, time_to_fence_s: float = 100) -> Supervisor:
    """A supervisor whose child has ended."""
    return Supervisor(
        "worker.trainer",
        workdir,
        database=attempt._runtime.database,
        renew=attempt._renew,
        renewed_s=monotonic_s(),
        limits=Limits(heartbeat_s=100, fence_s=time_to_fence_s, progress_timeout_s=100),
        is_draining=lambda: False,
        on_message=attempt._on_message,
    )


def offer_checkpoint(attempt: TrainingAttempt, workdir: Path, step: int) -> str:
    path = workdir / f"checkpoint-{step}"
    path.write_bytes(b"%d" % step)
    message = {"type": "checkpoint", "path": str(path), "step": step}
    with attempt._runtime.database.write() as session:
        for write in attempt._on_message(message):
            write(session)
    assert not path.exists()
    return hashlib.sha256(b"%d" % step).hexdigest()


class TestPublish:
    def test_the_files_are_stored_and_the_model_names_them(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        conclude(attempt, workdir)
        (model,) = models_of(runtime.database)
        assert runtime.store.fetch(model.adapter_sha256).read_bytes() == b"adapter"
        assert runtime.store.fetch(model.card_sha256).read_text() == "card"
        assert (model.adapter_bytes, model.classes) == (7, ["a", "b"])
        assert job_of(runtime.database, model.job_id).state == "succeeded"

    def test_evaluation_and_figures_are_stored_with_it(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        draw(workdir, "reliability", {"status": "ready"}, b"picture")
        draw(workdir, "agreement", {"status": "not_available", "reason": "no teacher"})
        conclude(attempt, workdir)
        (model,) = models_of(runtime.database)
        fetch = runtime.store.fetch
        assert fetch(model.evaluation_sha256).read_text() == '{"split": "test"}'
        assert model.figures.keys() == {"reliability", "agreement"}
        ready, missing = model.figures["reliability"], model.figures["agreement"]
        assert (ready["status"], ready["reason"]) == ("ready", None)
        assert fetch(ready["png_sha256"]).read_bytes() == b"picture"
        assert json.loads(fetch(ready["json_sha256"]).read_text()) == {"status": "ready"}
        assert (missing["status"], missing["reason"]) == ("not_available", "no teacher")
        assert missing["png_sha256"] is None
        assert json.loads(fetch(missing["json_sha256"]).read_text())["reason"] == "no teacher"

    def test_a_job_that_asks_for_no_figure_has_none(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        conclude(attempt, workdir)
        (model,) = models_of(runtime.database)
        assert model.figures is None

    def test_a_transaction_that_breaks_before_its_commit_is_tried_again(
        self, database: BreakingDatabase, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        database.before_commit = 2
        conclude(attempt, workdir)
        assert len(models_of(database)) == 1

    def test_a_commit_whose_answer_is_lost_publishes_once(
        self, database: BreakingDatabase, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        database.after_commit = 1
        with pytest.raises(LeaseLostError):
            conclude(attempt, workdir)
        (model,) = models_of(database)
        assert job_of(database, model.job_id).model_id == model.id

    def test_an_outage_up_to_the_fence_publishes_nothing(
        self, database: BreakingDatabase, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        database.before_commit = 1
        with pytest.raises(LeaseLostError, match="out of reach"):
            conclude(attempt, workdir, time_to_fence_s=0.5)
        assert models_of(database) == []

    def test_a_cancel_that_comes_first_is_kept(
        self, database: BreakingDatabase, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        job_id = attempt._claim.row_id
        with database.write() as session:
            control.request_cancel(session, job_id)
        conclude(attempt, workdir)
        assert (job_of(database, job_id).state, models_of(database)) == ("cancelled", [])

    @pytest.mark.parametrize("ending", [Ending.FAILED, Ending.STOPPED, Ending.CRASHED])
    def test_a_cancel_decides_however_the_trainer_ended(
        self,
        database: BreakingDatabase,
        attempt: TrainingAttempt,
        workdir: Path,
        ending: Ending,
    ) -> None:
        job_id = attempt._claim.row_id
        with database.write() as session:
            control.request_cancel(session, job_id)
        error = {"code": "process_died", "message": "it crashed", "class": "system"}
        attempt._conclude(Outcome(ending, error), supervise(attempt, workdir), workdir)
        assert job_of(database, job_id).state == "cancelled"

    @pytest.mark.parametrize(
        ("ending", "state"),
        [
            (Ending.DONE, "succeeded"),
            (Ending.FAILED, "failed"),
            (Ending.STOPPED, "paused"),
            (Ending.CRASHED, "paused"),
            (Ending.LOST, "pausing"),
        ],
    )
    def test_a_pause_does_not_change_what_the_trainer_did(
        self,
        database: BreakingDatabase,
        attempt: TrainingAttempt,
        workdir: Path,
        ending: Ending,
        state: str,
    ) -> None:
        job_id = attempt._claim.row_id
        pause(database, job_id)
        error = {"code": "process_died", "message": "it crashed", "class": "system"}
        outcome = DONE if ending is Ending.DONE else Outcome(ending, error)
        attempt._conclude(outcome, supervise(attempt, workdir), workdir)
        job = job_of(database, job_id)
        assert (job.state, job.failures) == (state, int(ending is Ending.CRASHED))
        assert len(models_of(database)) == (state == "succeeded")

    def test_an_overtaken_attempt_publishes_nothing(
        self, database: BreakingDatabase, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        lose(database, attempt._claim)
        claim(database, owner="host:2")
        with pytest.raises(LeaseLostError):
            conclude(attempt, workdir)
        assert models_of(database) == []


class TestCheckpoints:
    def test_the_row_always_names_one_that_is_stored(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        stored = []
        for step in range(1, 5):
            stored.append(offer_checkpoint(attempt, workdir, step))
            job = job_of(runtime.database, attempt._claim.row_id)
            assert (job.checkpoint_sha256, job.checkpoint_step) == (stored[-1], step)
        with runtime.database.write() as session:
            attempt._renew(session, None)
        stored.append(offer_checkpoint(attempt, workdir, 5))
        assert [runtime.store.exists(sha256) for sha256 in stored] == [False] * 3 + [True] * 2

    def test_none_is_dropped_for_one_whose_write_was_rolled_back(
        self, database: BreakingDatabase, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        named = offer_checkpoint(attempt, workdir, 1)
        for step in (2, 3, 4):
            database.before_commit = 1
            with pytest.raises(OperationalError):
                offer_checkpoint(attempt, workdir, step)
        with database.write() as session:
            attempt._renew(session, None)
        job = job_of(database, attempt._claim.row_id)
        assert job.checkpoint_sha256 == named
        assert attempt._runtime.store.exists(named)

    def test_an_overtaken_attempt_takes_none_away(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        stored = [offer_checkpoint(attempt, workdir, step) for step in (1, 2)]
        lose(runtime.database, attempt._claim)
        claim(runtime.database, owner="host:2")
        with pytest.raises(LeaseLostError):
            offer_checkpoint(attempt, workdir, 3)
        assert all(runtime.store.exists(sha256) for sha256 in stored)

    def test_one_that_cannot_be_used_does_not_keep_new_ones_out(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        old = offer_checkpoint(attempt, workdir, 50)
        lose(runtime.database, attempt._claim)
        again = TrainingAttempt(runtime, claim(runtime.database), claimed_s=monotonic_s())
        again._checkpoints, again._checkpoint_step = [old], 50  # as `_build_request` leaves them
        for step in (3, 6):
            new = offer_checkpoint(again, workdir, step)
            job = job_of(runtime.database, again._claim.row_id)
            assert (job.checkpoint_sha256, job.checkpoint_step) == (new, step)
        with runtime.database.write() as session:
            again._renew(session, None)
        offer_checkpoint(again, workdir, 9)
        assert [runtime.store.exists(sha256) for sha256 in (old, new)] == [False, True]

    def test_none_is_left_when_the_job_has_ended(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path
    ) -> None:
        stored = [offer_checkpoint(attempt, workdir, step) for step in (1, 2)]
        conclude(attempt, workdir)
        assert not any(runtime.store.exists(sha256) for sha256 in stored)

    @pytest.mark.parametrize("ending", [Ending.STOPPED, Ending.CRASHED, Ending.LOST])
    def test_the_next_attempt_finds_the_last(
        self, runtime: Runtime, attempt: TrainingAttempt, workdir: Path, ending: Ending
    ) -> None:
        sha256 = offer_checkpoint(attempt, workdir, 7)
        error = {"code": "process_died", "message": "it crashed", "class": "system"}
        attempt._conclude(Outcome(ending, error), supervise(attempt, workdir), workdir)
        job = job_of(runtime.database, attempt._claim.row_id)
        assert job.state == ("running" if ending is Ending.LOST else "queued")
        assert (job.checkpoint_sha256, runtime.store.exists(sha256)) == (sha256, True)
