"""How long a job may run, all of its attempts together."""

from dataclasses import dataclass
from typing import Any

from core.platform.db.tables import JobRow
from core.settings import Settings


@dataclass(frozen=True)
class TimeLimit:
    """A job's limit, and what it had used up when this attempt began.

    Attributes:
        limit_s: longest running time.
        ran_before_s: running time of the attempts before.
        asked_for: whether the job itself asks for this limit, rather than the setting.
    """

    limit_s: float
    ran_before_s: float
    asked_for: bool

    def find_overrun(self, elapsed_s: float) -> dict[str, Any] | None:
        """Return the error of a job whose attempt has run for `elapsed_s`, if that is too long."""
        ran_s = self.ran_before_s + elapsed_s
        if ran_s <= self.limit_s:
            return None
        source = "its limits.max_seconds" if self.asked_for else "IDAT_MAX_JOB_S"
        return {
            "code": "time_limit_exceeded",
            "message": f"the job has run for {ran_s:.0f} s, {elapsed_s:.0f} s of them in this "
            f"attempt, and may run for {self.limit_s:.0f} s ({source}); give it more time or fewer "
            "epochs",
            "class": "user",
            "ran_s": round(ran_s, 1),
            "limit_s": self.limit_s,
        }


def find_time_limit(job: JobRow, settings: Settings) -> TimeLimit | None:
    """Return a job's limit, the lower of its own and the setting's; None if there is none."""
    own, general = job.max_seconds, settings.max_job_s or None
    if own is None and general is None:
        return None
    if own is not None and (general is None or own <= general):
        return TimeLimit(own, job.ran_s, asked_for=True)
    assert general is not None, "one of the two is"
    return TimeLimit(general, job.ran_s, asked_for=False)
