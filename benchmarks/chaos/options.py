"""What a run is asked for, and what came of it."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.backends import BackendName, StoreName
from benchmarks.chaos.ledger import Violation
from benchmarks.chaos.plans import DEFAULT_PLANS, Plan


@dataclass(frozen=True)
class Options:
    """What to do.

    Attributes:
        backend: on what.
        store: where blobs are, for `scaled`.
        faults: how many must strike.
        seed: of the faults, the customers and the delays.
        time_limit_s: no fault is begun after so long.
        settle_s: how long all jobs may take to end after the last fault.
        mean_gap_s: between two faults.
        customers: how many jobs there are at a time.
        kinds: of faults, None for all that can strike here.
        plans: of jobs.
        folder: for data and logs, None for a temporary one.
        postgresql_url: of a server on which a database may be created.
    """

    backend: BackendName = "embedded"
    store: StoreName = "s3"
    faults: int = 40
    seed: int = 0
    time_limit_s: float = 1800.0
    settle_s: float = 600.0
    mean_gap_s: float = 4.0
    customers: int = 5
    kinds: tuple[str, ...] | None = None
    plans: tuple[Plan, ...] = DEFAULT_PLANS
    folder: Path | None = None
    postgresql_url: str = "postgresql://postgres@127.0.0.1:5432/postgres"


@dataclass
class Result:
    """What came of it.

    Attributes:
        faults: kind -> how often it struck.
        missed: kind -> how often there was nothing to strike.
        endings: state -> how many jobs ended so.
        attempts: how many attempts a job took -> how many jobs.
        violations: broken promises; must be empty.
        duration_s: from the start to the judgement.
        fault_duration_s: from the first fault to the last.
        settle_duration_s: from the last fault until every job had ended.
        folder: where data and logs are.
        is_complete: whether as many faults struck as were asked for.
    """

    folder: Path
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    duration_s: float = 0.0
    fault_duration_s: float = 0.0
    settle_duration_s: float = 0.0
    is_complete: bool = False
