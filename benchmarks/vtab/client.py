"""The few requests to the service that the benchmark makes, each safe to repeat."""

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from core.clock import monotonic_s
from core.errors import AppError, NotFoundError, UnavailableError

_TIMEOUT_S = 120.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_TRANSIENT = frozenset({429, 502, 503, 504})

Json = dict[str, Any]


class RefusedError(AppError):
    """The service refused a request, and would refuse it again."""

    code = "service_refused"


class Client:
    """Talks to the service; a request that finds it away is sent again for a while.

    What creates something carries an `Idempotency-Key`, so that a repetition creates nothing new.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        check_stop: Callable[[], None],
        patience_s: float = 120.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Open a connection pool.

        Args:
            url: base URL of the service.
            api_key: bearer key; None where the service asks for none.
            check_stop: called between two tries; may raise.
            patience_s: how long a service that does not answer is asked again.
            transport: stands in for the network in tests.
        """
        self.url = url.rstrip("/")
        self._check_stop, self._patience_s = check_stop, patience_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=_TIMEOUT_S, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def upload_dataset(self, archive: Path, *, name: str, key: str) -> Json:
        """Upload an archive; return the dataset, which a worker has still to validate."""

        def send() -> httpx.Response:
            with archive.open("rb") as file:
                return self._http.post(
                    "/v1/datasets",
                    files={"file": (archive.name, file, "application/zip")},
                    data={"name": name},
                    headers={"Idempotency-Key": key},
                )

        return self._repeat("POST /v1/datasets", send)

    def get_dataset(self, dataset_id: str) -> Json:
        """Return a dataset."""
        return self._get(f"/v1/datasets/{dataset_id}")

    def submit_job(self, request: Json, *, key: str) -> Json:
        """Submit a fine-tuning job."""
        path = "/v1/fine_tuning/jobs"
        headers = {"Idempotency-Key": key}
        return self._repeat(
            f"POST {path}", lambda: self._http.post(path, json=request, headers=headers)
        )

    def get_job(self, job_id: str) -> Json:
        """Return a job."""
        return self._get(f"/v1/fine_tuning/jobs/{job_id}")

    def list_metrics(self, job_id: str) -> list[Json]:
        """Return the figures of a job's finished epochs."""
        listed: list[Json] = self._get(f"/v1/fine_tuning/jobs/{job_id}/metrics")["data"]
        return listed

    def get_model(self, model_id: str) -> Json:
        """Return a model."""
        return self._get(f"/v1/models/{model_id}")

    def get_config(self, model_id: str) -> Json:
        """Return a model's `config.json`."""
        return self._get(f"/v1/models/{model_id}/config")

    def _get(self, path: str) -> Json:
        return self._repeat(f"GET {path}", lambda: self._http.get(path))

    def _repeat(self, what: str, send: Callable[[], httpx.Response]) -> Json:
        """Send until there is an answer.

        Raises:
            NotFoundError: the service does not know the thing.
            RefusedError: the answer is an error of ours.
            UnavailableError: no answer, or none but errors of the moment, for too long.
        """
        deadline, pause_s = monotonic_s() + self._patience_s, _FIRST_PAUSE_S
        while True:
            self._check_stop()
            try:
                response = send()
                reason = f"{response.status_code}: {_detail(response)}"
                if response.status_code not in _TRANSIENT:
                    return _read(what, response, reason)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            if monotonic_s() + pause_s > deadline:
                raise UnavailableError(
                    f"{what} at {self.url} got no answer for {self._patience_s:.0f} s ({reason}); "
                    "start the service, or name another with --service"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _read(what: str, response: httpx.Response, reason: str) -> Json:
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotFoundError(f"{what} answered {reason}")
    if not response.is_success:
        raise RefusedError(f"{what} answered {reason}")
    try:
        answer: Json = response.json()
    except ValueError as error:
        raise RefusedError(f"{what} answered no JSON; is this the service's URL?") from error
    return answer


def _detail(response: httpx.Response) -> str:
    """Return what a problem document says, or the start of the body."""
    if response.is_success:
        return ""
    try:
        problem = response.json()
    except ValueError:
        return response.text[:300]
    if not isinstance(problem, dict):
        return response.text[:300]
    fields = [f"{field['pointer']}: {field['message']}" for field in problem.get("errors") or []]
    return "; ".join([str(problem.get("detail", problem)), *fields])
