"""What a client asks of jobs, and how long it waits for the promise."""

from tests.e2e.stack import Stack, wait_until

#: Within which a job is where its user wants it, and no trainer of it holds the device.
PROMISE_S = 30.0


def ask(stack: Stack, job_id: str, action: str) -> tuple[int, str]:
    """Ask for something; the answer's status, and the job's or the problem's code."""
    response = stack.client.post(f"/v1/fine_tuning/jobs/{job_id}/{action}")
    body = response.json()
    return response.status_code, str(
        body["status"] if response.status_code == 200 else body["code"]
    )


def wait_for_status(
    stack: Stack, job_id: str, status: str, *, timeout_s: float = PROMISE_S
) -> None:
    """Wait until the job is there."""
    wait_until(
        lambda: stack.get_job(job_id)["status"] == status,
        timeout_s=timeout_s,
        what=f"{job_id} to be {status}",
    )


def find_trainers(stack: Stack, job_id: str) -> list[int]:
    """The process ids of the trainers that work on a job."""
    return [
        pid for pid in stack.find_children("worker.trainer") if job_id in stack.read_command(pid)
    ]


def wait_for_no_trainer(stack: Stack, job_id: str, *, timeout_s: float = PROMISE_S) -> None:
    """Wait until nobody works on the job any more."""
    wait_until(
        lambda: find_trainers(stack, job_id) == [],
        timeout_s=timeout_s,
        what=f"the trainer of {job_id} to be gone",
    )


def cancel_open_jobs(stack: Stack) -> None:
    """Leave nothing for the workers of the next test, whatever became of this one."""
    for job in stack.get("/v1/fine_tuning/jobs?limit=100")["data"]:
        if job["status"] not in ("succeeded", "failed", "cancelled"):
            ask(stack, job["id"], "cancel")
