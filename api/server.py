"""uvicorn's server, leaving in two steps: balancers notice before connections are refused."""

import signal
from types import FrameType

import uvicorn

from api.lifecycle import Lifecycle
from core.clock import monotonic_s


class DrainingServer(uvicorn.Server):
    """Answers on for a while after SIGTERM, and tells everybody to go elsewhere.

    In the first step connections are taken as before, readiness says 503, and new inference gets
    503 with `Connection: close`. In the second, uvicorn's own, no connection is taken any more.
    Requests that have been accepted are answered in both.

    Args:
        config: uvicorn's.
        lifecycle: told that the end has begun.
        drain_s: length of the first step; a second signal ends it.
    """

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_s: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_s = drain_s
        self._leave_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the first step, or the second where there is none to wait for."""
        is_first = not self._lifecycle.is_draining
        self._lifecycle.drain()
        if is_first and sig == signal.SIGTERM and self._drain_s > 0:
            self._leave_at_s = monotonic_s() + self._drain_s
            return
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Begin the second step when the first has lasted long enough; called every 0.1 s."""
        if self._leave_at_s is not None and monotonic_s() >= self._leave_at_s:
            self._leave_at_s = None
            super().handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)
