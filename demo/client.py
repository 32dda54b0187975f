"""The calls that the demo makes, and the curl line of each: nothing that a user could not type."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

_TIMEOUT_S = 60.0

Json = dict[str, Any]


class DemoError(Exception):
    """A step of the demo did not work."""


class Client:
    """Talks to the service; every method is one request."""

    def __init__(
        self, url: str, *, api_key: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        """Open a connection pool.

        Args:
            url: base URL of the service.
            api_key: bearer key, None where the service asks for none.
            transport: stands in for the network in tests.
        """
        self.url = url.rstrip("/")
        self._key = api_key
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

    def curl(self, path: str, *arguments: str) -> str:
        """Return the curl line of a request, ready to be pasted into a shell."""
        # The key itself is not shown: it would stay in logs and screenshots.
        key = ' -H "Authorization: Bearer $KEY"' if self._key else ""
        words = [shlex.quote(argument) for argument in arguments]
        return " ".join([f"curl -s{key}", *words, shlex.quote(self.url + path)])

    def is_ready(self) -> bool:
        """Return whether the service answers that it is ready."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def upload_dataset(self, archive: Path, *, name: str) -> Json:
        """Upload an archive; return the dataset, which a worker has still to validate."""
        with archive.open("rb") as file:
            files = {"file": (archive.name, file, "application/zip")}
            return self._json("POST", "/v1/datasets", files=files, data={"name": name})

    def get_dataset(self, dataset_id: str) -> Json:
        """Return a dataset."""
        return self._json("GET", f"/v1/datasets/{dataset_id}")

    def submit_job(self, request: Json) -> Json:
        """Submit a fine-tuning job."""
        return self._json("POST", "/v1/fine_tuning/jobs", json=request)

    def get_job(self, job_id: str) -> Json:
        """Return a job."""
        return self._json("GET", f"/v1/fine_tuning/jobs/{job_id}")

    def list_metrics(self, job_id: str) -> list[Json]:
        """Return the figures of a job's finished epochs."""
        listed: list[Json] = self._json("GET", f"/v1/fine_tuning/jobs/{job_id}/metrics")["data"]
        return listed

    def cancel_job(self, job_id: str) -> Json:
        """Ask for a job to be stopped."""
        return self._json("POST", f"/v1/fine_tuning/jobs/{job_id}/cancel")

    def get_model(self, model_id: str) -> Json:
        """Return a model."""
        return self._json("GET", f"/v1/models/{model_id}")

    def download_adapter(self, model_id: str, path: Path) -> str:
        """Write a model's adapter file to `path`; return the ETag that came with it."""
        response = self._send("GET", f"/v1/models/{model_id}/adapter")
        path.write_bytes(response.content)
        etag: str = response.headers.get("ETag", "")
        return etag.strip('"')

    def classify(self, model_id: str, image: Path, *, top_k: int) -> list[Json]:
        """Return the most likely classes of an image, `{"label", "score"}`, best first."""
        response = self._send(
            "POST",
            f"/v1/models/{model_id}/classify",
            params={"top_k": top_k},
            content=image.read_bytes(),
            headers={"Content-Type": "image/png"},
        )
        scores: list[Json] = response.json()
        return scores

    def _json(self, method: str, path: str, **arguments: Any) -> Json:  # noqa: ANN401 - httpx's own
        answer: Json = self._send(method, path, **arguments).json()
        return answer

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:  # noqa: ANN401
        with _explained(method, path):
            response = self._http.request(method, path, **arguments)
        if response.is_error:
            raise DemoError(f"{method} {path} answered {response.status_code}: {_detail(response)}")
        return response


@contextmanager
def _explained(method: str, path: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise DemoError(
            f"{method} {path} got no answer: {error or type(error).__name__}"
        ) from error


def _detail(response: httpx.Response) -> str:
    """Return what a problem document says, or the body as it is."""
    try:
        problem = response.json()
    except json.JSONDecodeError:
        return response.text[:500]
    if not isinstance(problem, dict):
        return response.text[:500]
    fields = [f"{field['pointer']}: {field['message']}" for field in problem.get("errors") or []]
    return "; ".join([str(problem.get("detail", problem)), *fields])
