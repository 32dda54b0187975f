"""The load: HTTP/1.1 over kept connections, from a process of its own.

Open loop: requests are due at the times of a Poisson process, whatever the server does, and a
latency counts from the time at which its request was due. Closed loop: each connection sends its
next request when it has the answer to the last; that finds a server's peak, and no latencies.

Reads one JSON object from stdin, prints one on stdout.
"""

import asyncio
import json
import math
import os
import random
import sys
import time
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import uvloop

#: Requests beyond it are counted as not sent: a server this far behind is over its limit.
_MAX_CONNECTIONS = 512


@dataclass(frozen=True)
class Plan:
    """One slice of load.

    Attributes:
        port: the server's, on 127.0.0.1.
        path: of the request, with `{model}` where the model's name goes.
        names: the models' names, in the order of their popularity.
        zipf: exponent of their popularity; 0 for all alike.
        images: folder of encoded images.
        seconds: how long requests are due.
        rate: requests a second; None for a closed loop.
        connections: of the closed loop.
        deadline_s: an answer after it is worth nothing.
        headers: further ones, by name.
        seed: of arrivals and choices.
    """

    port: int
    path: str
    names: list[str]
    zipf: float
    images: str
    seconds: float
    rate: float | None
    connections: int
    deadline_s: float
    headers: dict[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass
class Tally:
    """What came back."""

    latencies_s: list[float] = field(default_factory=list)
    #: answers while the load went on; what a queue holds at its end is no throughput
    answered: int = 0
    #: those of them that came within the deadline
    good: int = 0
    rejections_s: list[float] = field(default_factory=list)
    #: the same from when the request was sent, without what this process was late itself
    rejections_sent_s: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    unsent: int = 0
    late_s: list[float] = field(default_factory=list)

    def count(self, status: str) -> None:
        """Note one answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1


class Client:
    """Sends the requests of a plan."""

    def __init__(self, plan: Plan) -> None:
        """Prepare everything that need not be done while the clock runs."""
        self._plan = plan
        self._draws = random.Random(plan.seed)  # noqa: S311 - of a benchmark
        self._bodies = [path.read_bytes() for path in sorted(Path(plan.images).iterdir())]
        weights = [1 / (rank + 1) ** plan.zipf for rank in range(len(plan.names))]
        self._cumulative = list(accumulate(weights))
        self._idle: list[_Connection] = []
        self._open = 0
        self._ends_s = math.inf
        self.tally = Tally()

    async def run(self) -> float:
        """Send, wait for the answers, return for how long requests were due in seconds."""
        try:
            return await (self._run_closed() if self._plan.rate is None else self._run_open())
        finally:
            for connection in self._idle:
                connection.close()

    async def _run_closed(self) -> float:
        started_s = time.monotonic()
        end_s = started_s + self._plan.seconds

        async def repeat() -> None:
            while time.monotonic() < end_s:
                await self._send(time.monotonic())

        await asyncio.gather(*(repeat() for _ in range(self._plan.connections)))
        return time.monotonic() - started_s

    async def _run_open(self) -> float:
        assert self._plan.rate is not None
        tasks: set[asyncio.Task[None]] = set()
        started_s = time.monotonic()
        self._ends_s = started_s + self._plan.seconds
        due_s = started_s
        while True:
            due_s += self._draws.expovariate(self._plan.rate)
            if due_s - started_s > self._plan.seconds:
                break
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self.tally.late_s.append(time.monotonic() - due_s)
            if self._open >= _MAX_CONNECTIONS and not self._idle:
                self.tally.unsent += 1
                continue
            task = asyncio.create_task(self._send(due_s))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks, timeout=self._plan.deadline_s + 5)
        return self._plan.seconds

    async def _send(self, due_s: float) -> None:
        body = self._draws.choice(self._bodies)
        place = bisect(self._cumulative, self._draws.random() * self._cumulative[-1])
        name = self._plan.names[min(place, len(self._plan.names) - 1)]
        lines = [
            f"POST {self._plan.path.format(model=name)} HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: image/jpeg",
            f"Content-Length: {len(body)}",
            *(f"{key}: {value.format(model=name)}" for key, value in self._plan.headers.items()),
        ]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        try:
            connection = self._take_idle() or await self._connect()
            sent_s = time.monotonic()
            status, keep = await connection.ask(head, body)
        except (OSError, ValueError) as error:
            self._open -= 1
            self.tally.count(type(error).__name__)
            return
        if keep:
            self._idle.append(connection)
        else:
            self._open -= 1
            connection.close()
        now_s = time.monotonic()
        took_s = now_s - due_s
        self.tally.count(str(status))
        if status == 200:  # noqa: PLR2004
            self.tally.latencies_s.append(took_s)
            if now_s <= self._ends_s:
                self.tally.answered += 1
                self.tally.good += took_s <= self._plan.deadline_s
        elif status in (429, 503):
            self.tally.rejections_s.append(took_s)
            self.tally.rejections_sent_s.append(now_s - sent_s)

    def _take_idle(self) -> "_Connection | None":
        """Return a kept connection that the server has not closed meanwhile, None without any."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                return connection
            self._open -= 1
        return None

    async def _connect(self) -> "_Connection":
        self._open += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._plan.port)
        return connection


class _Connection(asyncio.Protocol):
    """A kept connection, on which one request at a time is under way."""

    def __init__(self) -> None:
        self.is_closed = False
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bool]] | None = None

    def ask(self, head: bytes, body: bytes) -> asyncio.Future[tuple[int, bool]]:
        """Send a request; its answer's status, and whether the connection stays open, will come.

        The future has a ConnectionError where the connection ends before, a ValueError where the
        answer is none that is read here.
        """
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines([head, body])
        return self._answer

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        """Settle the answer once it is here as a whole."""
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end or self._answer is None or self._answer.done():
            return
        try:
            status, length, keep = _read_head(head.decode("latin-1").lower())
        except ValueError as error:
            self._answer.set_exception(error)
            self.close()
            return
        if len(rest) >= length:
            self._received = b""
            self._answer.set_result((status, keep))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the answer that is still awaited."""
        self.is_closed = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))


def _read_head(head: str) -> tuple[int, int, bool]:
    """Return an answer's status, the bytes of its body and whether the connection stays open."""
    length = 0
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name == "content-length":
            length = int(value)
        elif name == "transfer-encoding":
            raise ValueError("chunked answers are not read here")
    return int(head.split(" ", 2)[1]), length, "connection: close" not in head


def find_percentile(values: list[float], share: float) -> float | None:
    """Return the value below which `share` of them lie, None without any."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summarise(plan: Plan, tally: Tally, seconds: float) -> dict[str, Any]:
    """Return the figures of a slice: rates a second, latencies in milliseconds.

    Open loops count the answers that came until the last request was due, closed ones all of them
    in all of their time. Latencies are those of all answers.
    """

    def in_ms(values: list[float], share: float) -> float | None:
        found = find_percentile(values, share)
        return None if found is None else round(found * 1000, 2)

    return {
        "offered": plan.rate,
        "answered": round(tally.answered / seconds, 2),
        "goodput": round(tally.good / seconds, 2),
        **{f"p{p}_ms": in_ms(tally.latencies_s, p / 100) for p in (50, 95, 99)},
        "rejected": len(tally.rejections_s),
        "rejected_p99_ms": in_ms(tally.rejections_s, 0.99),
        "rejected_sent_p99_ms": in_ms(tally.rejections_sent_s, 0.99),
        "unsent": tally.unsent,
        "statuses": tally.statuses,
        # The generator's own delay: if it is not small, it and not the server is measured.
        "late_p99_ms": in_ms(tally.late_s, 0.99),
    }


def main() -> None:
    """Run one plan."""
    plan = Plan(**json.load(sys.stdin))
    client = Client(plan)
    started_s = time.process_time()
    seconds = uvloop.run(client.run())
    used_s = time.process_time() - started_s
    figures = summarise(plan, client.tally, seconds)
    # What the generator took of the machine, which it shares with the server.
    figures["load_cpu_share"] = round(used_s / seconds / (os.cpu_count() or 1), 3)
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
