"""The load generator, against a server that does what it is told."""

import asyncio

import pytest
import uvloop

from benchmarks.serving.load import Client, Plan, summarise

_REFUSED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
_ANSWERED = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def images(tmp_path):
    (tmp_path / "image.jpg").write_bytes(b"pixels")
    return str(tmp_path)


class Server:
    """Answers what `answers` gives, after a delay; may close connections once they are idle."""

    def __init__(self, answers, delay_s=0.0, is_closing=False):
        self._answers = iter(answers)
        self._delay_s = delay_s
        self._is_closing = is_closing
        self._tasks = []

    @property
    def connections(self):
        return len(self._tasks)

    async def serve(self, reader, writer):
        self._tasks.append(asyncio.current_task())
        while await reader.read(1 << 16):
            await asyncio.sleep(self._delay_s)
            writer.write(next(self._answers))
            if self._is_closing:
                break
        writer.close()
        await writer.wait_closed()

    def load(self, images, **changes):
        async def run():
            listener = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            port = listener.sockets[0].getsockname()[1]
            plan = Plan(
                port, "/{model}", ["ants"], 0.0, images, 0.5, rate=20, connections=1, deadline_s=2.0
            )
            plan = Plan(**{**plan.__dict__, **changes})
            client = Client(plan)
            async with listener:
                seconds = await client.run()
            await asyncio.wait(self._tasks)
            return summarise(plan, client.tally, seconds)

        return uvloop.run(run())


def test_rejections_are_timed_from_when_they_were_due_and_from_when_they_were_sent(images):
    figures = Server(iter(lambda: _REFUSED, None), delay_s=0.05).load(images)
    assert figures["rejected"] == sum(figures["statuses"].values()) > 0
    assert figures["answered"] == 0
    assert 50 <= figures["rejected_sent_p99_ms"] <= figures["rejected_p99_ms"]


def test_a_connection_that_the_server_has_closed_is_not_used_again(images):
    server = Server(iter(lambda: _ANSWERED, None), is_closing=True)
    figures = server.load(images, rate=10, seconds=1.0)
    assert set(figures["statuses"]) == {"200"}
    assert server.connections == figures["statuses"]["200"] > 1


def test_what_is_answered_after_the_load_has_ended_is_no_goodput(images):
    server = Server(iter(lambda: _ANSWERED, None), delay_s=0.6)
    figures = server.load(images, rate=20, seconds=1.0)
    sent = figures["statuses"]["200"]
    assert 0 < figures["goodput"] < sent, "half of the answers came later"
    assert figures["answered"] == figures["goodput"]
    assert figures["p50_ms"] >= 600, "all are timed"


def test_a_closed_loop_counts_all_answers_in_all_of_its_time(images):
    server = Server(iter(lambda: _ANSWERED, None), delay_s=0.2)
    figures = server.load(images, rate=None, seconds=0.5, connections=2, deadline_s=0.1)
    assert 0 < figures["answered"] <= 2 / 0.2
    assert figures["goodput"] == 0, "none was in time"
