"""A run from its beginning to its judgement."""

import contextlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.chaos.backends import Backend, open_backend
from benchmarks.chaos.client import Client, GaveUpError, wait_until_ready
from benchmarks.chaos.customers import Customer, watch
from benchmarks.chaos.evidence import (
    Evidence,
    list_leftovers,
    read_blobs,
    read_integrity,
    read_rows,
)
from benchmarks.chaos.faults import list_kinds
from benchmarks.chaos.injector import Injector
from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.options import Options, Result
from benchmarks.chaos.oracle import count_endings, judge, list_garbage, list_untold
from benchmarks.chaos.plans import Plan, build_archive
from benchmarks.chaos.receiver import open_receiver
from benchmarks.chaos.schedule import draw_faults
from benchmarks.chaos.stack import MAX_ATTEMPTS, Stack, start_stack, wait_for_no_child
from core.clock import monotonic_s
from core.errors import InvalidError, UnavailableError
from core.platform.db.engine import Database
from core.platform.storage.factory import build_store

_REFERENCE_S = 600.0
_READY_S = 90.0
_CHILDREN_S = 30.0
_COLLECTED_S = 120.0
#: An upload whose process was killed is left alone for a minute; then it goes.
_UPLOAD_AGE_S = 120.0


def run_chaos(options: Options, tell: Callable[[str], None]) -> Result:
    """Start a service, strike it, let it settle, stop it, and judge what it has left.

    Args:
        options: what to do.
        tell: is given the lines that show the progress.

    Raises:
        InvalidError: the run cannot be made here; says what is missing.
        UnavailableError: the service did not even start, or failed before any fault.
    """
    folder = options.folder or Path(tempfile.mkdtemp(prefix="idat-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise InvalidError(f"{folder} is not empty; name another folder with --keep")
    started_s = monotonic_s()
    result = Result(folder)
    ledger = Ledger(tell=tell)
    with (
        open_backend(
            options.backend, options.store, folder=folder, postgresql_url=options.postgresql_url
        ) as backend,
        open_receiver(ledger) as receiver_url,
        start_stack(backend, ledger, seed=options.seed) as stack,
    ):
        tell("the service is up")
        run = _Run(options, stack, ledger, result, tell)
        with run.watching():
            run.prepare(receiver_url)
            injector = run.disturb()
        evidence = run.finish()
        if result.violations:
            _keep_data(backend, folder)
    result.faults, result.missed = injector.struck, injector.missed
    result.is_complete = injector.struck.total() >= options.faults
    result.endings, result.attempts = count_endings(evidence), evidence.attempts
    result.duration_s = monotonic_s() - started_s
    return result


class _Run:
    """The parts of a run, in the order in which they are called."""

    def __init__(
        self,
        options: Options,
        stack: Stack,
        ledger: Ledger,
        result: Result,
        tell: Callable[[str], None],
    ) -> None:
        self._options, self._stack, self._ledger = options, stack, ledger
        self._result, self._tell = result, tell
        #: set when no thread shall ask anything any more
        self._over = threading.Event()
        self._ended: Counter[str] = Counter()
        self._dataset_id = ""
        settings = stack.backend.settings
        self._database = Database(settings.resolved_database_url)
        self._store = build_store(settings)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note every job's end from a thread of its own until the end of the block."""
        watcher = threading.Thread(
            target=watch, args=(self._build_client("watcher"), self._ledger, self._over)
        )
        watcher.start()
        try:
            yield
        finally:
            self._over.set()
            watcher.join()

    def prepare(self, receiver_url: str) -> None:
        """Subscribe to events, upload the pictures and run each plan once, undisturbed.

        Args:
            receiver_url: where events are sent.

        Raises:
            UnavailableError: that did not work, or took too long.
        """
        # Some are in the list more than once, to be chosen more often.
        plans = list({plan.name: plan for plan in self._options.plans}.values())
        first = self._build_customer("reference")
        try:
            with self._at_most(_REFERENCE_S):
                first.subscribe(receiver_url)
                self._dataset_id = first.upload(build_archive(0))
                missing = plans
                while missing:
                    missing = self._run_undisturbed(first, missing)
        except GaveUpError as error:
            reason = "; ".join(map(str, self._ledger.violations)) or "they took too long"
            raise UnavailableError(f"undisturbed jobs did not end: {reason}") from error
        finally:
            first.close()
        self._tell(f"undisturbed: {', '.join(plan.name for plan in plans)}")

    def _run_undisturbed(self, first: Customer, plans: list[Plan]) -> list[Plan]:
        """Run each plan once; return those that a machine too busy for the lease has disturbed.

        Raises:
            UnavailableError: a job did not succeed, although nothing had struck.
        """
        promises = [first.order(plan, dataset_id=self._dataset_id) for plan in plans]
        disturbed = []
        for plan, promise in zip(plans, promises, strict=True):
            if (state := first.wait_for_end(promise)) != "succeeded":
                raise UnavailableError(f"an undisturbed job ended as {state}: {promise.job_id}")
            if first.count_attempts(promise) == 1:
                promise.is_reference = True
            else:
                disturbed.append(plan)
        return disturbed

    def disturb(self) -> Injector:
        """Let customers come and faults strike; return when every job has ended."""
        options = self._options
        injector = self._stack.build_injector(self._tell_fault)
        kinds = options.kinds or list_kinds(injector.targets)
        if unknown := set(kinds) - set(list_kinds(injector.targets)):
            raise InvalidError(f"cannot strike here: {', '.join(sorted(unknown))}")
        self._tell(f"faults: {', '.join(kinds)}")
        closing = threading.Event()
        with ThreadPoolExecutor(options.customers, thread_name_prefix="customer") as pool:
            customers = [
                pool.submit(self._build_customer(f"s{options.seed}c{number}").work, closing)
                for number in range(options.customers)
            ]
            started_s = monotonic_s()
            try:
                injector.run(
                    draw_faults(kinds, seed=options.seed, mean_gap_s=options.mean_gap_s),
                    faults=options.faults,
                    deadline_s=started_s + options.time_limit_s,
                    count_ended=self._ended.total,
                    over=self._over,
                )
                healed_s = monotonic_s()
                self._result.fault_duration_s = healed_s - started_s
                self._tell("the last fault is over; waiting for every job to end")
                closing.set()
                with self._at_most(options.settle_s):
                    for customer in customers:
                        customer.result()
                self._result.settle_duration_s = monotonic_s() - healed_s
            finally:
                closing.set()
                if not all(customer.done() for customer in customers):
                    self._over.set()  # interrupted
        return injector

    def finish(self) -> Evidence:
        """Wait for the cleaning up, stop the service, read what it has left and judge it."""
        evidence = Evidence(max_attempts=MAX_ATTEMPTS)
        data_dir = self._stack.backend.data_dir
        evidence.processes += wait_for_no_child(self._stack, timeout_s=_CHILDREN_S)
        missing = wait_until_ready(self._stack.ports, timeout_s=_READY_S)
        evidence.faults += [f"the API on port {port} is not ready" for port in missing]
        self._wait_for_workers()
        self._tell("stopping the service")
        self._stack.stop()
        evidence.processes += self._stack.list_survivors()
        evidence.leftovers = list_leftovers(data_dir)
        read_rows(self._database, evidence)
        read_blobs(self._store, evidence)
        evidence.faults += read_integrity(self._database)
        self._database.dispose()
        self._result.violations = judge(self._ledger, evidence)
        return evidence

    def _wait_for_workers(self) -> None:
        """Wait until nothing is left that nobody needs, and every event is told."""
        scratch = self._stack.backend.data_dir / "scratch"
        deadline_s = monotonic_s() + _COLLECTED_S
        while monotonic_s() < deadline_s:
            for upload in scratch.glob("upload-*"):
                with contextlib.suppress(FileNotFoundError):
                    age = upload.stat().st_mtime - _UPLOAD_AGE_S
                    os.utime(upload, (age, age))
            evidence = Evidence()
            read_rows(self._database, evidence)
            blobs = {blob.sha256: blob.sha256 for blob in self._store.iter_blobs()}
            evidence.blobs = blobs
            # The folders of live workers stay until they are stopped.
            live = [path.name for path in scratch.glob("slots-*")]
            ours = live[: len(self._stack.workers)]
            data_dir = self._stack.backend.data_dir
            is_clean = not list_garbage(evidence) and not list_leftovers(data_dir, ours=ours)
            if is_clean and not list_untold(evidence):
                return
            threading.Event().wait(0.5)

    @contextlib.contextmanager
    def _at_most(self, limit_s: float) -> Iterator[None]:
        """Let every thread give up if the block takes too long."""
        timer = threading.Timer(limit_s, self._over.set)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _build_client(self, name: str) -> Client:
        return Client(self._stack.ports, self._ledger, seed=name, over=self._over)

    def _build_customer(self, name: str) -> Customer:
        return Customer(
            name,
            self._build_client(name),
            self._ledger,
            dataset_id=self._dataset_id,
            plans=self._options.plans,
            over=self._over,
            on_end=self._count,
        )

    def _count(self, _plan: str, state: str) -> None:
        with self._ledger.lock:
            self._ended[state] += 1

    def _tell_fault(self, line: str) -> None:
        with self._ledger.lock:
            ended = " ".join(f"{count} {state}" for state, count in sorted(self._ended.items()))
            asked, broken = len(self._ledger.promises), len(self._ledger.violations)
        self._tell(f"{line} | {asked} jobs, ended: {ended or 'none'} | {broken} violations")


def _keep_data(backend: Backend, folder: Path) -> None:
    """Copy what is on a file system that will be gone."""
    if backend.has_small_disk:
        shutil.copytree(backend.data_dir, folder / "kept-data", dirs_exist_ok=True)
