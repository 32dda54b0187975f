"""The oracle: what every run must leave, whatever was done to it. Pure; it asks nobody."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from benchmarks.chaos.evidence import Evidence, JobFact, ModelFact, NewsFact
from benchmarks.chaos.ledger import Ledger, Promise, Violation
from core.platform.jobs.states import TERMINAL

_ENDINGS = {f"job.{state}" for state in ("succeeded", "failed", "cancelled")}


def judge(ledger: Ledger, evidence: Evidence) -> list[Violation]:
    """Return every broken promise: those seen on the way first, then those found at the end."""
    found = list(ledger.violations)
    for check in (
        _check_acceptance,
        _check_endings,
        _check_attempts,
        _check_models,
        _check_files,
        _check_sameness,
        _check_datasets,
        _check_news,
        _check_store,
        _check_remains,
    ):
        found += check(ledger, evidence)
    return found


def _check_acceptance(ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Accepted jobs are there, each once; nothing is there that was not accepted."""
    there = {job.id for job in evidence.jobs}
    for job_id in ledger.promises.keys() - there:
        yield Violation("job_lost", job_id, "was accepted, and has no row")
    for job_id in there - ledger.promises.keys():
        yield Violation("job_unasked", job_id, "has a row, and no answer ever named it")
    for key, ids in ledger.answers.items():
        if len(ids) > 1:
            yield Violation("key_answered_twice", key, f"named {', '.join(sorted(ids))}")
        if evidence.keys.get(key) not in ids:
            yield Violation("key_lost", key, f"has no row that names {', '.join(sorted(ids))}")
    by_key: dict[str | None, list[str]] = defaultdict(list)
    for job in evidence.jobs:
        if job.retried_from is None:
            by_key[job.key].append(job.id)
    for each, jobs in by_key.items():
        if len(jobs) > 1:
            yield Violation("key_used_twice", str(each), f"made {', '.join(sorted(jobs))}")


def _check_endings(ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Every job ends once, as its customer may expect, and never again."""
    for job in evidence.jobs:
        if job.state not in TERMINAL:
            yield Violation("job_not_ended", job.id, f"is still {job.state}")
            continue
        seen = ledger.ended.get(job.id, job.state)
        if seen != job.state:
            message = f"was seen {seen}, and is {job.state}"
            yield Violation("terminal_state_left", job.id, message)
        promise = ledger.promises.get(job.id)
        if promise is not None:
            yield from _check_expected(promise, job)
        events = evidence.events.get(job.id, [])
        endings = [event.type for event in events if event.type in _ENDINGS]
        if endings != [f"job.{job.state}"]:
            message = f"is {job.state}, and its events say {endings or 'nothing'}"
            yield Violation("ended_twice", job.id, message)
        elif events[-1].type not in _ENDINGS:
            yield Violation("written_after_end", job.id, f"then came {events[-1].type}")


def _check_expected(promise: Promise, job: JobFact) -> Iterator[Violation]:
    if promise.is_cancelled and job.state != "cancelled":
        yield Violation("cancel_ignored", job.id, f"was to be cancelled, and is {job.state}")
    if job.state == "cancelled" and not promise.is_cancel_sent:
        yield Violation("cancelled_unasked", job.id, "nobody asked for that")
    if job.state == "failed" and job.error_code != promise.error_code:
        yield Violation("failed_wrongly", job.id, f"with {job.error_code}")
    if job.state == "succeeded" and promise.error_code is not None:
        yield Violation("succeeded_wrongly", job.id, f"and not with {promise.error_code}")


def _check_attempts(_ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """One attempt at a time: each starts after the end of the one before, which writes no more."""
    for job in evidence.jobs:
        events = evidence.events.get(job.id, [])
        started = [event.attempt for event in events if event.type == "attempt.started"]
        if started != list(range(1, job.attempt + 1)):
            message = f"is at attempt {job.attempt}, and its events say {started}"
            yield Violation("attempts_out_of_order", job.id, message)
        if job.failures > evidence.max_attempts:
            message = f"failed {job.failures} times, with {evidence.max_attempts} allowed"
            yield Violation("too_many_attempts", job.id, message)
        current, is_held = 0, False
        for event in events:
            if event.type == "attempt.started":
                if is_held:
                    message = f"attempt {event.attempt} started before {current} had ended"
                    yield Violation("two_attempts", job.id, message)
                current, is_held = event.attempt, True
            elif event.attempt and event.attempt != current:
                # Whatever it is: an overtaken attempt may end the job that another works on, too.
                message = f"attempt {event.attempt} wrote {event.type} during {current}"
                yield Violation("stale_write", job.id, message)
            if event.type in ("attempt.lost", "attempt.released", "job.paused"):
                is_held = False


def _check_models(_ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """A job that succeeded has one model; no other has any."""
    models: dict[str, list[ModelFact]] = defaultdict(list)
    for model in evidence.models:
        models[model.job_id].append(model)
    for job in evidence.jobs:
        mine = models.pop(job.id, [])
        expected = [job.model_id] if job.state == "succeeded" else []
        if [model.id for model in mine] != expected:
            message = f"is {job.state}, names {job.model_id} and has {[m.id for m in mine]}"
            yield Violation("wrong_models", job.id, message)
    for job_id in models:
        yield Violation("wrong_models", job_id, "has a model and no row")


def _check_files(_ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Every file of a model is in the store."""
    for model in evidence.models:
        for part in ("adapter", "config", "card", "evaluation"):
            if model.blobs.get(part) is None:
                yield Violation("model_incomplete", model.id, f"names no {part}")
        for part, sha256 in model.blobs.items():
            if sha256 is None or sha256 not in evidence.blobs:
                yield Violation("blob_missing", model.id, f"{part} {sha256}")
            elif part in ("config", "evaluation") and sha256 not in evidence.documents:
                yield Violation("model_incomplete", model.id, f"{part} is no JSON object")


def _check_sameness(ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Every job of a plan has the very adapter of the undisturbed one."""
    adapters = {model.job_id: model.blobs.get("adapter") for model in evidence.models}
    references = {
        promise.plan: adapters.get(promise.job_id)
        for promise in ledger.promises.values()
        if promise.is_reference
    }
    attempts = {job.id: job.attempt for job in evidence.jobs}
    for promise in ledger.promises.values():
        adapter = adapters.get(promise.job_id)
        if promise.is_reference and attempts.get(promise.job_id) != 1:
            message = f"took {attempts.get(promise.job_id)} attempts"
            yield Violation("reference_disturbed", promise.job_id, message)
        if adapter is not None and adapter != references.get(promise.plan):
            message = f"{promise.plan}: {adapter}, undisturbed {references.get(promise.plan)}"
            yield Violation("other_bytes", promise.job_id, message)


def _check_datasets(ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Accepted datasets are there and ready, or deleted because somebody asked."""
    there = {dataset.id: dataset for dataset in evidence.datasets}
    for dataset_id in ledger.datasets - there.keys() - ledger.deleted_datasets:
        yield Violation("dataset_lost", dataset_id, "was accepted, and has no row")
    for dataset in evidence.datasets:
        if dataset.id not in ledger.datasets:
            yield Violation("dataset_unasked", dataset.id, "no answer ever named it")
        if dataset.is_deleted != (dataset.id in ledger.deleted_datasets):
            message = f"deleted is {dataset.is_deleted}, which is not what was asked for"
            yield Violation("wrong_deletion", dataset.id, message)
        if dataset.is_deleted:
            continue
        if dataset.state != "ready":
            yield Violation("dataset_not_ready", dataset.id, f"is {dataset.state}")
        for part, sha256 in dataset.blobs.items():
            if sha256 not in evidence.blobs:
                yield Violation("blob_missing", dataset.id, f"{part} {sha256}")


def list_untold(evidence: Evidence) -> list[NewsFact]:
    """Return the events that have not been delivered, and that no failed attempt holds back."""
    return [
        event
        for event in evidence.news
        if event.state != "delivered" and not (event.state == "pending" and event.attempt > 0)
    ]


def _check_news(ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """The receiver is owed one event for each end, under one id, and hears it at least once."""
    owed: dict[str | None, list[NewsFact]] = defaultdict(list)
    for event in evidence.news:
        owed[event.subject_id].append(event)
    for job in evidence.jobs:
        types = [event.type for event in owed.get(job.id, [])]
        expected = [f"fine_tuning.job.{job.state}"] if job.state in TERMINAL else []
        if types != expected:
            yield Violation("wrong_news", job.id, f"{types} in place of {expected}")
    known = {event.id: (event.subject_id, event.type) for event in evidence.news}
    for event_id, heard in ledger.heard.items():
        if set(heard) != {known.get(event_id)}:
            yield Violation("wrong_news", event_id, f"told {heard}, and not {known.get(event_id)}")
    for event in evidence.news:
        if event.state == "delivered" and event.id not in ledger.heard:
            yield Violation("news_lost", event.id, "was delivered, and nobody heard it")
    for event in list_untold(evidence):
        yield Violation("news_untold", event.id, f"is {event.state} after {event.attempt} attempts")


def list_garbage(evidence: Evidence) -> list[str]:
    """Return the blobs that nothing names, all jobs having ended."""
    named = {sha256 for model in evidence.models for sha256 in model.blobs.values()}
    for dataset in evidence.datasets:
        if not dataset.is_deleted:
            named |= set(dataset.blobs.values())
    return sorted(evidence.blobs.keys() - named)


def _check_store(_ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Every blob is what its name says, and somebody names it."""
    for name, sha256 in evidence.blobs.items():
        if name != sha256:
            yield Violation("blob_corrupt", name, f"its bytes are {sha256}")
    for name in list_garbage(evidence):
        yield Violation("garbage", name, "no row names it")


def _check_remains(_ledger: Ledger, evidence: Evidence) -> Iterator[Violation]:
    """Nothing is left behind, and nothing is broken."""
    for leftover in evidence.leftovers:
        yield Violation("leftover", leftover, "nobody works on it")
    for process in evidence.processes:
        yield Violation("process_left", process, "should have ended")
    for fault in evidence.faults:
        yield Violation("unhealthy", "service", fault)


def count_endings(evidence: Evidence) -> Counter[str]:
    """Return how many jobs ended how."""
    return Counter(job.state for job in evidence.jobs)
