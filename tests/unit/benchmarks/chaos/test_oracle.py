"""The oracle finds every kind of broken promise that is planted, and nothing in a good run."""

from dataclasses import replace

import pytest

from benchmarks.chaos.evidence import (
    DatasetFact,
    EventFact,
    Evidence,
    JobFact,
    ModelFact,
    NewsFact,
)
from benchmarks.chaos.ledger import Ledger, Promise, Sight
from benchmarks.chaos.oracle import judge, list_garbage

PARTS = ("adapter", "config", "card", "evaluation")


def sha(name):
    return f"{name:-<64}"


def model_of(job_id, adapter="adapter"):
    blobs = {part: sha(f"{job_id} {part}") for part in PARTS}
    return ModelFact(f"mdl_{job_id}", job_id, {**blobs, "adapter": sha(adapter)})


def events(*types):
    """Events of one attempt after the other: each `attempt.started` begins the next."""
    attempt, lines = 0, []
    for number, name in enumerate(types, start=1):
        attempt += name == "attempt.started"
        lines.append(EventFact(number, name, attempt))
    return lines


class Run:
    """A run of four jobs in which everything is as it should be."""

    def __init__(self):
        self.ledger = Ledger()
        self.evidence = Evidence(max_attempts=3)
        self.ledger.promise_dataset("upload", "ds_1")
        manifest, archive, cache = sha("manifest"), sha("archive"), sha("cache")
        blobs = {"archive": archive, "manifest": manifest, "cache 64": cache}
        self.evidence.datasets.append(DatasetFact("ds_1", "ready", is_deleted=False, blobs=blobs))
        self.evidence.keys["upload"] = "ds_1"
        start, end = "attempt.started", "job.succeeded"
        self.add("calm", "succeeded", events(start, end), is_reference=True)
        self.add("struck", "succeeded", events(start, "attempt.lost", start, "message", end))
        cancelled = events(start, "job.cancelling", "job.cancelled")
        self.add("gone", "cancelled", cancelled, is_cancel_sent=True, is_cancelled=True)
        self.add("bad", "failed", events(start, "job.failed"), error_code="diverged")
        stored = set(blobs.values())
        for model in self.evidence.models:
            stored |= set(model.blobs.values())
            self.evidence.documents |= {model.blobs["config"], model.blobs["evaluation"]}
        self.evidence.blobs = {sha256: sha256 for sha256 in stored}

    def add(self, job_id, state, lines, *, error_code=None, **promised):
        plan = "bad" if error_code else "good"
        self.ledger.promise(Promise(job_id, f"key {job_id}", plan, error_code, **promised))
        self.ledger.see(job_id, Sight(state))
        model = model_of(job_id) if state == "succeeded" else None
        attempts = sum(line.type == "attempt.started" for line in lines)
        self.evidence.jobs.append(
            JobFact(
                id=job_id,
                state=state,
                attempt=attempts,
                failures=attempts - 1,
                key=f"key {job_id}",
                dataset_id="ds_1",
                model_id=model and model.id,
                error_code=error_code,
            )
        )
        self.evidence.events[job_id] = lines
        self.evidence.keys[f"key {job_id}"] = job_id
        news = NewsFact(f"evt_{job_id}", job_id, f"fine_tuning.job.{state}", "delivered", 1)
        self.evidence.news.append(news)
        self.ledger.hear(news.id, job_id, news.type)
        if model:
            self.evidence.models.append(model)

    def change(self, job_id, **changes):
        jobs = self.evidence.jobs
        jobs[:] = [replace(job, **changes) if job.id == job_id else job for job in jobs]

    def change_news(self, number, **changes):
        self.evidence.news[number] = replace(self.evidence.news[number], **changes)

    def rules(self):
        return {violation.rule for violation in judge(self.ledger, self.evidence)}


@pytest.fixture
def run():
    return Run()


def test_a_good_run_breaks_nothing(run):
    assert judge(run.ledger, run.evidence) == []


def test_what_was_seen_on_the_way_is_told(run):
    run.ledger.complain("server_error", "500", "GET /readyz")
    assert run.rules() == {"server_error"}


class TestAcceptance:
    def test_lost_job(self, run):
        run.evidence.jobs = [job for job in run.evidence.jobs if job.id != "bad"]
        assert run.rules() == {"job_lost"}

    def test_job_that_no_answer_named(self, run):
        run.add("extra", "cancelled", events("job.cancelled"), is_cancel_sent=True)
        del run.ledger.promises["extra"]
        assert run.rules() == {"job_unasked"}

    def test_one_key_makes_two_jobs(self, run):
        run.add("twin", "cancelled", events("job.cancelled"), is_cancel_sent=True)
        run.change("twin", key="key gone")
        assert run.rules() == {"key_used_twice"}

    def test_a_retried_job_has_the_metadata_of_the_first(self, run):
        run.add("again", "failed", events("attempt.started", "job.failed"), error_code="diverged")
        run.change("again", key="key bad", retried_from="bad")
        assert run.rules() == set()

    def test_one_key_is_answered_with_two_ids(self, run):
        run.ledger.answers["key calm"].add("struck")
        assert run.rules() == {"key_answered_twice"}

    def test_key_that_is_forgotten(self, run):
        del run.evidence.keys["key calm"]
        assert run.rules() == {"key_lost"}


class TestEndings:
    def test_job_that_never_ended(self, run):
        run.change("struck", state="queued", model_id=None)
        del run.evidence.models[1]
        assert run.rules() == {"job_not_ended", "garbage", "wrong_news"}

    def test_terminal_state_that_was_left(self, run):
        run.ledger.ended["gone"] = "failed"
        assert run.rules() == {"terminal_state_left"}

    def test_terminal_state_that_was_seen_to_be_left(self, run):
        run.ledger.see("gone", Sight("running"))
        assert run.rules() == {"terminal_state_left"}

    def test_job_that_ended_twice(self, run):
        lines = events("attempt.started", "job.cancelling", "job.cancelled", "job.cancelled")
        run.evidence.events["gone"] = lines
        assert run.rules() == {"ended_twice"}

    def test_ending_that_the_events_do_not_know(self, run):
        run.evidence.events["gone"] = events("attempt.started", "job.succeeded")
        assert run.rules() == {"ended_twice"}

    def test_job_that_is_written_to_after_its_end(self, run):
        run.evidence.events["gone"] = [
            *run.evidence.events["gone"],
            EventFact(9, "job.resumed", 0),
        ]
        assert run.rules() == {"written_after_end"}

    def test_cancel_that_was_promised_and_not_kept(self, run):
        run.ledger.promises["struck"].is_cancel_sent = True
        run.ledger.promises["struck"].is_cancelled = True
        assert run.rules() == {"cancel_ignored"}

    def test_cancel_that_was_not_answered_may_come_too_late(self, run):
        run.ledger.promises["struck"].is_cancel_sent = True
        assert run.rules() == set()

    def test_cancelled_though_nobody_asked(self, run):
        run.ledger.promises["gone"].is_cancel_sent = False
        run.ledger.promises["gone"].is_cancelled = False
        assert run.rules() == {"cancelled_unasked"}

    def test_failure_of_another_kind_than_the_job_asks_for(self, run):
        run.change("bad", error_code="worker_lost")
        assert run.rules() == {"failed_wrongly"}

    def test_success_of_what_cannot_succeed(self, run):
        run.ledger.promises["struck"].error_code = "diverged"
        assert run.rules() == {"succeeded_wrongly"}


class TestAttempts:
    def test_two_attempts_at_once(self, run):
        start = "attempt.started"
        run.evidence.events["struck"] = events(start, "message", start, "job.succeeded")
        assert run.rules() == {"two_attempts"}

    def test_pause_and_release_end_an_attempt(self, run):
        start = "attempt.started"
        lines = events(start, "attempt.released", start, "job.paused", start, "job.succeeded")
        run.evidence.events["struck"] = lines
        run.change("struck", attempt=3)
        assert run.rules() == set()

    def test_overtaken_attempt_that_writes(self, run):
        lines = run.evidence.events["struck"]
        run.evidence.events["struck"] = [*lines[:-1], EventFact(8, "message", 1), lines[-1]]
        assert run.rules() == {"stale_write"}

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_overtaken_attempt_that_ends_the_job(self, run, state):
        """The fence without the attempt's number: whoever was overtaken publishes first."""
        job_id = {"succeeded": "struck", "failed": "bad", "cancelled": "gone"}[state]
        start = "attempt.started"
        lines = events(start, "attempt.lost", start, "job.cancelling", f"job.{state}")
        run.evidence.events[job_id] = [*lines[:-1], replace(lines[-1], attempt=1)]
        run.change(job_id, attempt=2)
        assert run.rules() == {"stale_write"}

    def test_overtaken_attempt_that_pauses_the_job(self, run):
        start, lost = "attempt.started", "attempt.lost"
        lines = events(start, lost, start, "job.paused", start, "job.succeeded")
        lines[3] = replace(lines[3], attempt=1)
        run.evidence.events["struck"] = lines
        run.change("struck", attempt=3)
        assert run.rules() == {"stale_write"}

    def test_attempt_that_is_seen_to_go_back(self, run):
        for attempt in (1, 2, 1):
            run.ledger.see("new", Sight("running", attempt))
        assert run.rules() == {"attempt_went_back"}

    def test_two_trainers_that_tell_their_steps_in_turn(self, run):
        for step in (60, 41, 61, 42):
            run.ledger.see("new", Sight("running", 2, step))
        assert run.rules() == {"progress_went_back"}

    def test_an_attempt_may_start_behind_the_one_before(self, run):
        run.ledger.see("new", Sight("running", 1, 60))
        run.ledger.see("new", Sight("queued", 1))
        for attempt, steps in ((2, (60, 40, 70)), (3, (70, 50, 51, 51, 80))):
            for step in steps:
                run.ledger.see("new", Sight("running", attempt, step))
        assert run.rules() == set()

    def test_attempt_without_a_beginning(self, run):
        run.change("struck", attempt=3)
        assert run.rules() == {"attempts_out_of_order"}

    def test_more_failures_than_allowed(self, run):
        run.change("struck", failures=4)
        assert run.rules() == {"too_many_attempts"}


class TestModels:
    def test_two_models_of_one_job(self, run):
        run.evidence.models.append(replace(run.evidence.models[0], id="mdl_second"))
        assert run.rules() == {"wrong_models"}

    def test_success_without_a_model(self, run):
        run.add("empty", "succeeded", events("attempt.started", "job.succeeded"))
        run.evidence.models.pop()
        assert run.rules() == {"wrong_models"}

    def test_model_of_a_cancelled_job(self, run):
        blobs = run.evidence.models[0].blobs
        run.evidence.models.append(ModelFact("mdl_gone", "gone", blobs))
        assert run.rules() == {"wrong_models"}

    def test_model_of_no_job(self, run):
        blobs = run.evidence.models[0].blobs
        run.evidence.models.append(ModelFact("mdl_ghost", "ghost", blobs))
        assert run.rules() == {"wrong_models"}

    @pytest.mark.parametrize("part", ["adapter", "card", "config"])
    def test_file_that_is_missing(self, run, part):
        # The adapter's blob is shared by both models, the others are not.
        del run.evidence.blobs[run.evidence.models[0].blobs[part]]
        assert run.rules() == {"blob_missing"}

    def test_figure_that_is_missing(self, run):
        run.evidence.models[0].blobs["learning_curves.png"] = sha("picture")
        assert run.rules() == {"blob_missing"}

    def test_model_without_an_evaluation(self, run):
        name = run.evidence.models[0].blobs["evaluation"]
        run.evidence.models[0].blobs["evaluation"] = None
        del run.evidence.blobs[name]
        assert run.rules() == {"model_incomplete", "blob_missing"}

    def test_config_that_cannot_be_read(self, run):
        run.evidence.documents.discard(run.evidence.models[0].blobs["config"])
        assert run.rules() == {"model_incomplete"}

    def test_other_bytes_than_the_undisturbed_job(self, run):
        run.evidence.models[1].blobs["adapter"] = sha("other")
        run.evidence.blobs[sha("other")] = sha("other")
        assert run.rules() == {"other_bytes"}

    def test_reference_that_was_disturbed(self, run):
        run.ledger.promises["struck"].is_reference = True
        assert run.rules() == {"reference_disturbed"}


class TestDatasets:
    def test_lost_dataset(self, run):
        run.ledger.promise_dataset("another", "ds_2")
        run.evidence.keys["another"] = "ds_2"
        assert run.rules() == {"dataset_lost"}

    def test_dataset_that_nobody_uploaded(self, run):
        extra = replace(run.evidence.datasets[0], id="ds_2")
        run.evidence.datasets.append(extra)
        assert run.rules() == {"dataset_unasked"}

    def test_dataset_that_never_became_ready(self, run):
        run.evidence.datasets[0] = replace(run.evidence.datasets[0], state="failed")
        assert run.rules() == {"dataset_not_ready"}

    def test_deletion_that_was_forgotten(self, run):
        run.ledger.deleted_datasets.add("ds_1")
        assert run.rules() == {"wrong_deletion"}

    def test_deletion_that_nobody_asked_for(self, run):
        run.evidence.datasets[0] = replace(run.evidence.datasets[0], is_deleted=True)
        assert "wrong_deletion" in run.rules()

    def test_archive_that_is_missing(self, run):
        del run.evidence.blobs[sha("archive")]
        assert run.rules() == {"blob_missing"}


class TestNews:
    def test_end_that_nobody_is_told_of(self, run):
        del run.ledger.heard[run.evidence.news.pop().id]
        assert run.rules() == {"wrong_news"}

    def test_end_that_is_told_under_two_ids(self, run):
        run.evidence.news.append(replace(run.evidence.news[0], id="evt_second"))
        run.ledger.hear("evt_second", "calm", "fine_tuning.job.succeeded")
        assert run.rules() == {"wrong_news"}

    def test_another_end_is_told_than_the_job_has(self, run):
        run.change_news(0, type="fine_tuning.job.failed")
        assert run.rules() == {"wrong_news"}

    def test_event_that_was_never_written_down(self, run):
        run.ledger.hear("evt_ghost", "calm", "fine_tuning.job.succeeded")
        assert run.rules() == {"wrong_news"}

    def test_event_that_comes_twice_under_one_id(self, run):
        run.ledger.hear("evt_calm", "calm", "fine_tuning.job.succeeded")
        assert run.rules() == set()

    def test_event_that_is_called_delivered_and_was_not(self, run):
        del run.ledger.heard["evt_calm"]
        assert run.rules() == {"news_lost"}

    @pytest.mark.parametrize(("state", "attempt"), [("pending", 0), ("sending", 1), ("failed", 9)])
    def test_event_that_is_never_told(self, run, state, attempt):
        run.change_news(0, state=state, attempt=attempt)
        assert run.rules() == {"news_untold"}

    def test_event_that_waits_for_another_attempt(self, run):
        run.change_news(0, state="pending", attempt=1)
        del run.ledger.heard["evt_calm"]
        assert run.rules() == set()


class TestRemains:
    def test_garbage(self, run):
        run.evidence.blobs[sha("old checkpoint")] = sha("old checkpoint")
        assert list_garbage(run.evidence) == [sha("old checkpoint")]
        assert run.rules() == {"garbage"}

    def test_blobs_of_a_deleted_dataset_are_garbage(self, run):
        run.ledger.deleted_datasets.add("ds_1")
        run.evidence.datasets[0] = replace(run.evidence.datasets[0], is_deleted=True)
        assert list_garbage(run.evidence) == sorted([sha("archive"), sha("cache"), sha("manifest")])

    def test_corrupt_blob(self, run):
        run.evidence.blobs[sha("manifest")] = sha("something else")
        assert run.rules() == {"blob_corrupt"}

    def test_leftover(self, run):
        run.evidence.leftovers.append("scratch/attempt-ftjob_1-1")
        assert run.rules() == {"leftover"}

    def test_process_that_is_left(self, run):
        run.evidence.processes.append("4711 python -m worker.trainer")
        assert run.rules() == {"process_left"}

    def test_broken_database(self, run):
        run.evidence.faults.append("integrity_check: row 3 missing")
        assert run.rules() == {"unhealthy"}
