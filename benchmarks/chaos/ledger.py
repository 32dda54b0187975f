"""What the customers of a run were promised, and what they saw that must not be."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from core.platform.jobs.states import TERMINAL


@dataclass(frozen=True)
class Violation:
    """Something that the service must never do.

    Attributes:
        rule: which promise was broken, in one word.
        subject: the id of what it was broken for.
        message: what was seen.
    """

    rule: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule} {self.subject}: {self.message}"


@dataclass
class Promise:
    """A job for which some answer said 2xx.

    Attributes:
        job_id: what the answer named.
        key: the `Idempotency-Key` under which it was asked for.
        plan: name of what was asked for.
        error_code: with which it must fail, None if it must succeed.
        is_reference: whether it ran before any fault, in one attempt.
        retried_from: the failed job that it repeats.
        is_cancel_sent: whether its customer asked for a cancel, with or without an answer.
        is_cancelled: whether the cancel was answered with 2xx.
    """

    job_id: str
    key: str
    plan: str
    error_code: str | None = None
    is_reference: bool = False
    retried_from: str | None = None
    is_cancel_sent: bool = False
    is_cancelled: bool = False


@dataclass(frozen=True)
class Sight:
    """What an answer said about a job.

    Attributes:
        state: its state.
        attempt: its newest attempt.
        step: how far its trainer said to be; None while none has said so.
    """

    state: str
    attempt: int = 0
    step: int | None = None


@dataclass
class Ledger:
    """Filled by all threads of a run.

    Attributes:
        promises: job id -> what was promised.
        answers: `Idempotency-Key` -> the ids that answers under it named.
        deleted_datasets: ids whose deletion was answered.
        datasets: ids of all datasets that were accepted.
        heard: id of an event -> of what it told, and what, each time that it came.
        violations: what was seen while the run went on.
        ended: job id -> the terminal state in which it was seen first.
        seen: job id -> what the last answer said.
        falls: job id and attempt -> how often its step was seen to be less than before.
        tell: is given each violation at once.
    """

    promises: dict[str, Promise] = field(default_factory=dict)
    answers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    datasets: set[str] = field(default_factory=set)
    deleted_datasets: set[str] = field(default_factory=set)
    heard: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    violations: list[Violation] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Sight] = field(default_factory=dict)
    falls: Counter[tuple[str, int]] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)
    tell: Callable[[str], None] = field(default=lambda _line: None)

    def promise(self, promise: Promise) -> Promise:
        """Note a job that was accepted, and under which key."""
        with self.lock:
            self.answers[promise.key].add(promise.job_id)
            return self.promises.setdefault(promise.job_id, promise)

    def promise_dataset(self, key: str, dataset_id: str) -> None:
        """Note a dataset that was accepted, and under which key."""
        with self.lock:
            self.answers[key].add(dataset_id)
            self.datasets.add(dataset_id)

    def complain(self, rule: str, subject: str, message: str) -> None:
        """Note a violation."""
        violation = Violation(rule, subject, message)
        with self.lock:
            self.violations.append(violation)
        self.tell(f"VIOLATION {violation}")

    def hear(self, event_id: str, subject_id: str, event_type: str) -> None:
        """Note an event that came in; it may come more than once."""
        with self.lock:
            self.heard[event_id].append((subject_id, event_type))

    def see(self, job_id: str, sight: Sight) -> None:
        """Hold what an answer says to what the one before said.

        The caller asks one question after the other, so that none is outdated. An attempt goes on
        from a checkpoint that is behind what the one before had reached: once in its life its step
        may fall. One that falls again is told by two trainers in turn.
        """
        with self.lock:
            before = self.seen.get(job_id, sight)
            self.seen[job_id] = sight
            first = self.ended.get(job_id)
            if first is None and sight.state in TERMINAL:
                self.ended[job_id] = sight.state
            key = (job_id, sight.attempt)
            steps = before.step, sight.step
            has_fallen = steps[0] is not None and steps[1] is not None and steps[1] < steps[0]
            self.falls[key] += has_fallen
            is_torn = has_fallen and self.falls[key] > 1
        if first is not None and sight.state != first:
            self.complain("terminal_state_left", job_id, f"was {first}, and later {sight.state}")
        if sight.attempt < before.attempt:
            message = f"was at attempt {before.attempt}, and later at {sight.attempt}"
            self.complain("attempt_went_back", job_id, message)
        if is_torn:
            message = f"attempt {sight.attempt} went back from step {before.step} to {sight.step}"
            self.complain("progress_went_back", job_id, message)
