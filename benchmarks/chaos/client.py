"""An honest client of a service that is being killed: it repeats what was not answered."""

import threading
from collections.abc import Sequence
from random import Random
from typing import Any

import httpx

from benchmarks.chaos.ledger import Ledger
from core.clock import monotonic_s

_TIMEOUT_S = 30.0
_RETRY_S = 0.3
#: Answers that say "not now": typed, and to be repeated.
_BUSY = frozenset({429, 503, 507})
_SERVER_ERROR = 500


class GaveUpError(Exception):
    """The run is over, or the service did not answer for far too long."""


class Client:
    """Asks one API or another until one of them answers."""

    def __init__(
        self, ports: Sequence[int], ledger: Ledger, *, seed: str, over: threading.Event
    ) -> None:
        """Prepare.

        Args:
            ports: of the APIs on this machine.
            ledger: is told of answers that must not be.
            seed: of the choice between them.
            over: when set, nothing is asked any more.
        """
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._ledger, self._over = ledger, over
        self._draw = Random(seed)  # noqa: S311
        self._http = httpx.Client(timeout=_TIMEOUT_S)

    def send(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        **content: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """Send a request, again and again under the same key, until it is answered.

        Raises:
            GaveUpError: the run is over.
        """
        headers = {} if key is None else {"Idempotency-Key": key}
        while not self._over.is_set():
            url = self._draw.choice(self._urls) + path
            try:
                answer = self._http.request(method, url, headers=headers, **content)
            except httpx.TransportError:
                self._over.wait(_RETRY_S)
                continue
            if answer.status_code in _BUSY:
                self._over.wait(_RETRY_S)
                continue
            if answer.status_code >= _SERVER_ERROR:
                # Busy and full have codes of their own; this is a bug.
                message = f"{method} {path}: {answer.text[:500]}"
                self._ledger.complain("server_error", str(answer.status_code), message)
                self._over.wait(_RETRY_S)
                continue
            return answer
        raise GaveUpError

    def get(self, path: str) -> dict[str, Any]:
        """GET a JSON resource that must be there.

        Raises:
            GaveUpError: it is not, or the run is over.
        """
        answer = self.send("GET", path)
        if not answer.is_success:
            self._ledger.complain("unexpected_answer", path, answer.text[:500])
            raise GaveUpError
        body: dict[str, Any] = answer.json()
        return body

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


def wait_until_ready(ports: Sequence[int], *, timeout_s: float) -> list[int]:
    """Wait until every API says that it is ready; return the ports of those that never did."""
    missing = list(ports)
    deadline_s = monotonic_s() + timeout_s
    while missing and monotonic_s() < deadline_s:
        missing = [port for port in missing if not _is_ready(port)]
        threading.Event().wait(0.2)
    return missing


def _is_ready(port: int) -> bool:
    try:
        answers = [
            httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=10)
            for path in ("healthz", "readyz")
        ]
    except httpx.TransportError:
        return False
    return all(answer.is_success for answer in answers)
