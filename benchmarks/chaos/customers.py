"""Customers: threads that ask for jobs, change their minds, and wait for what they asked for."""

import threading
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import httpx

from benchmarks.chaos.client import Client, GaveUpError
from benchmarks.chaos.ledger import Ledger, Promise, Sight
from benchmarks.chaos.plans import DIVERGING, SHORT, Plan, build_archive
from benchmarks.chaos.receiver import ENDPOINTS
from core.platform.jobs.states import TERMINAL

JOBS = "/v1/fine_tuning/jobs"

_POLL_S = 0.5
_CONFLICT = 409
#: What a customer does with a job, and how often out of all.
_WISHES = {"wait": 9, "cancel": 3, "pause": 4, "fail": 2, "upload": 2, "forget": 1}


class Customer:
    """One thread's worth of wishes, one job at a time.

    Attributes:
        name: part of all of its `Idempotency-Key`s.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        ledger: Ledger,
        *,
        dataset_id: str,
        plans: Sequence[Plan],
        over: threading.Event,
        on_end: Callable[[str, str], None] = lambda _plan, _state: None,
    ) -> None:
        """Prepare.

        Args:
            name: unique in the run.
            client: of this customer only.
            ledger: is told what was promised.
            dataset_id: of most jobs.
            plans: what to choose from.
            over: when set, it waits for nothing any more.
            on_end: told the plan and the state of each job that ended.
        """
        self.name = name
        self._client, self._ledger, self._dataset_id = client, ledger, dataset_id
        self._plans, self._over, self._on_end = plans, over, on_end
        self._draw = Random(name)  # noqa: S311
        self._count = 0

    def work(self, until: threading.Event) -> None:
        """Ask for jobs until told to stop; the one that is under way is seen to its end."""
        try:
            while not until.is_set():
                (wish,) = self._draw.choices(list(_WISHES), list(_WISHES.values()))
                getattr(self, f"_{wish}")()
        except GaveUpError:
            return
        finally:
            self.close()

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def order(self, plan: Plan, *, dataset_id: str) -> Promise:
        """Create a job, once, however often it takes."""
        key = self._build_key()
        request = plan.build_request(dataset_id, key)
        answer = self._client.send("POST", JOBS, key=key, json=request)
        job_id = self._read_id(answer, key)
        return self._ledger.promise(Promise(job_id, key, plan.name, plan.error_code))

    def wait_for_end(self, promise: Promise) -> str:
        """Return the job's last state; a pause whose request came late is taken back."""
        while True:
            state = str(self._client.get(f"{JOBS}/{promise.job_id}")["status"])
            if state in TERMINAL:
                self._on_end(promise.plan, state)
                return state
            if state in ("paused", "pausing"):
                self._change(promise, "resume")
            if self._over.wait(_POLL_S):
                raise GaveUpError

    def count_attempts(self, promise: Promise) -> int:
        """Return how many attempts the job has taken."""
        return int(self._client.get(f"{JOBS}/{promise.job_id}")["attempt"])

    def upload(self, archive: bytes) -> str:
        """Upload an archive, once, and return the dataset's id."""
        key = self._build_key()
        files = {"file": ("pictures.zip", archive)}
        answer = self._client.send("POST", "/v1/datasets", key=key, files=files, data={"seed": "1"})
        dataset_id = self._read_id(answer, key)
        self._ledger.promise_dataset(key, dataset_id)
        return dataset_id

    def subscribe(self, url: str) -> None:
        """Ask for an event at the end of each job and each validation."""
        key = self._build_key()
        answer = self._client.send("POST", ENDPOINTS, key=key, json={"url": url})
        self._read_id(answer, key)

    # The wishes.

    def _wait(self) -> None:
        self.wait_for_end(self.order(self._choose(), dataset_id=self._dataset_id))

    def _cancel(self) -> None:
        promise = self.order(self._choose(), dataset_id=self._dataset_id)
        self._dawdle(12.0)
        with self._ledger.lock:
            promise.is_cancel_sent = True
        if self._change(promise, "cancel"):
            with self._ledger.lock:
                promise.is_cancelled = True
        self.wait_for_end(promise)

    def _pause(self) -> None:
        promise = self.order(self._choose(), dataset_id=self._dataset_id)
        self._dawdle(8.0)
        if self._change(promise, "pause"):
            self._dawdle(6.0)
        self.wait_for_end(promise)

    def _fail(self) -> None:
        """Ask for what cannot work, and once it has failed, for the same again."""
        promise = self.order(DIVERGING, dataset_id=self._dataset_id)
        if self.wait_for_end(promise) != "failed":
            return
        key = self._build_key()
        answer = self._client.send("POST", f"{JOBS}/{promise.job_id}/retry", key=key)
        retried = Promise(
            self._read_id(answer, key),
            key,
            promise.plan,
            promise.error_code,
            retried_from=promise.job_id,
        )
        self.wait_for_end(self._ledger.promise(retried))

    def _upload(self) -> None:
        """Upload the same pictures as everybody's, and do not wait for them to be looked at."""
        dataset_id = self.upload(build_archive(0))
        self.wait_for_end(self.order(SHORT, dataset_id=dataset_id))

    def _forget(self) -> None:
        """Upload pictures of one's own, and delete them."""
        dataset_id = self.upload(build_archive(self._draw.randrange(1, 1 << 30)))
        self._dawdle(4.0)
        answer = self._client.send("DELETE", f"/v1/datasets/{dataset_id}")
        # Not found: an earlier request, which was not answered, has done it.
        if not answer.is_success and answer.status_code != httpx.codes.NOT_FOUND:
            self._ledger.complain("unexpected_answer", dataset_id, answer.text[:500])
        with self._ledger.lock:
            self._ledger.deleted_datasets.add(dataset_id)

    # How they are done.

    def _choose(self) -> Plan:
        return self._draw.choice(self._plans)

    def _dawdle(self, longest_s: float) -> None:
        if self._over.wait(self._draw.uniform(0, longest_s)):
            raise GaveUpError

    def _build_key(self) -> str:
        self._count += 1
        return f"{self.name}-{self._count}"

    def _change(self, promise: Promise, wish: str) -> bool:
        """Ask for a change; return whether it was taken on. A job that has ended takes none."""
        answer = self._client.send("POST", f"{JOBS}/{promise.job_id}/{wish}")
        if not answer.is_success and answer.status_code != _CONFLICT:
            message = f"{wish}: {answer.status_code} {answer.text[:500]}"
            self._ledger.complain("unexpected_answer", promise.job_id, message)
        return answer.is_success

    def _read_id(self, answer: httpx.Response, key: str) -> str:
        if not answer.is_success:
            message = f"{answer.status_code} {answer.text[:500]}"
            self._ledger.complain("unexpected_answer", key, message)
            raise GaveUpError
        body: dict[str, Any] = answer.json()
        return str(body["id"])


def watch(client: Client, ledger: Ledger, over: threading.Event) -> None:
    """Ask for the newest jobs, one question after the other, and note what is said of each."""
    try:
        while not over.wait(_POLL_S):
            for job in client.get(f"{JOBS}?limit=100")["data"]:
                step = job["progress"]["details"].get("step")
                ledger.see(job["id"], Sight(job["status"], job["attempt"], step))
    except GaveUpError:
        return
    finally:
        client.close()
