"""CPU time that a classify request costs besides the network and the decoder.

    python -m benchmarks.serving_overhead [--requests 4000] [--connections 16] [--rounds 3]

The service runs with an engine that answers at once and a decoder that decodes nothing, in its own
process, next to two servers that only read the body and answer JSON of the same size: a bare
Starlette route and a bare FastAPI one. `split` is the service as a front and an engine process,
counted apart: what the socket between them costs, with 150 kB of pixels a request. This process
sends the requests and reads each server's CPU time from /proc, so that its own does not count.
Servers take turns, in an order that changes.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

_SYSTEMS = ("service", "split", "fastapi", "starlette")
_BODY_BYTES = 55_000
_CLASSES = [f"class {number}" for number in range(10)]
_FEATURES = 192


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=(*_SYSTEMS, "engine"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve(arguments.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        servers = {name: _Server(name, Path(folder)) for name in _SYSTEMS}
        try:
            _measure(servers, arguments)
        finally:
            for server in servers.values():
                server.stop()


def _measure(servers: dict[str, "_Server"], arguments: argparse.Namespace) -> None:
    for server in servers.values():
        asyncio.run(_load(server.port, arguments.connections, arguments.requests // 10))
    costs: dict[str, list[float]] = {}
    for number in range(arguments.rounds):
        names = _SYSTEMS if number % 2 == 0 else _SYSTEMS[::-1]
        for name in names:
            server = servers[name]
            before = server.cpu_s()
            asyncio.run(_load(server.port, arguments.connections, arguments.requests))
            for part, after_s in server.cpu_s().items():
                cost_ms = (after_s - before[part]) / arguments.requests * 1000
                costs.setdefault(f"{name} {part}".strip(), []).append(cost_ms)
    print(f"CPU ms a request, {_BODY_BYTES} bytes in, {arguments.connections} connections")
    for name, values in costs.items():
        middle = statistics.median(values)
        print(f"  {name:13} {middle:.3f}  ({min(values):.3f} to {max(values):.3f})")
    for other in ("fastapi", "starlette"):
        extra = statistics.median(costs["service"]) - statistics.median(costs[other])
        print(f"  service over {other}: {extra:.3f}")


class _Server:
    """A server, of one process or two, and its CPU time."""

    def __init__(self, name: str, folder: Path) -> None:
        data_dir = folder / name
        data_dir.mkdir()
        self._environment = {**os.environ, "IDAT_DATA_DIR": str(data_dir)}  # noqa: TID251 - passed on whole
        if name == "split":
            self._environment["IDAT_ENGINE_SOCKET"] = str(data_dir / "engine" / "socket")
        front = self._start(name)
        assert front.stdout is not None
        self.port = int(front.stdout.readline())
        self._processes = {"front" if name == "split" else "": front}
        if name == "split":
            engine = self._start("engine")
            assert engine.stdout is not None
            engine.stdout.readline()
            self._processes["engine"] = engine

    def cpu_s(self) -> dict[str, float]:
        """Return seconds of CPU time of all threads, user and system, of each process."""
        return {part: _read_cpu_s(process.pid) for part, process in self._processes.items()}

    def stop(self) -> None:
        """End it."""
        for process in self._processes.values():
            process.terminate()
            process.communicate()

    def _start(self, role: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(  # noqa: S603 - this very module
            [sys.executable, "-m", "benchmarks.serving_overhead", "--serve", role],
            cwd=Path(__file__).parents[1],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )


def _read_cpu_s(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _load(port: int, connections: int, requests: int) -> None:
    """Send requests on some connections, each waiting for its answer before the next."""
    head = (
        f"POST /v1/models/mdl_bench/classify HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: image/jpeg\r\nContent-Length: {_BODY_BYTES}\r\n\r\n"
    ).encode()
    message = head + bytes(_BODY_BYTES)

    async def send(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(message)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            length = int(answer.lower().partition(b"content-length: ")[2].split()[0])
            await reader.readexactly(length)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(send(requests // connections) for _ in range(connections)))


def _serve(name: str) -> None:
    import socket  # noqa: PLC0415 - in the server's process only

    import uvicorn  # noqa: PLC0415

    if name == "engine":
        import api.engine.__main__  # noqa: PLC0415

        _empty_network()
        sys.argv = [name]
        sys.exit(api.engine.__main__.main())
    app = {
        "service": _build_service,
        "split": _build_service,
        "fastapi": _build_fastapi,
        "starlette": _build_starlette,
    }
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(app[name](), access_log=False, log_config=None, server_header=False)
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[listener])


def _build_answer() -> list[dict[str, object]]:
    return [{"label": label, "score": 1 / (2 + rank)} for rank, label in enumerate(_CLASSES[:5])]


def _build_starlette() -> Any:  # noqa: ANN401 - an ASGI application
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import JSONResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    async def echo(request: Request) -> JSONResponse:
        await request.body()
        return JSONResponse(_build_answer())

    return Starlette(routes=[Route("/v1/models/{model}/classify", echo, methods=["POST"])])


def _build_fastapi() -> Any:  # noqa: ANN401
    from fastapi import FastAPI, Request  # noqa: PLC0415

    from api.schemas.inference import ClassScore  # noqa: PLC0415

    app = FastAPI()

    async def echo(request: Request, model: str, top_k: int = 5) -> list[ClassScore]:
        del model, top_k
        await request.body()
        return [ClassScore.model_validate(score) for score in _build_answer()]

    app.post("/v1/models/{model}/classify", response_model=list[ClassScore])(echo)
    return app


class _NullResident:
    """A model of no weights."""

    backbone = "null"
    batch_key = "null"
    image_px = 224
    size_bytes = 1
    preprocess_version = 1


class _NullOutput:
    """Always the same answer."""

    logits = np.arange(len(_CLASSES), dtype=np.float32)
    features = np.zeros(_FEATURES, dtype=np.float32)


class _NullEngine:
    """Answers at once."""

    cores = 1

    def __init__(self, **_: object) -> None:
        self._resident = _NullResident()
        self._output = _NullOutput()

    def prepare(self, backbone: str) -> None:
        """Have every backbone."""

    def admit(self, _bundle: object) -> _NullResident:
        """Have every model."""
        return self._resident

    def evict(self, _resident: object) -> None:
        """Free nothing."""

    def forward(
        self, residents: Sequence[object], _pixels: object, _cores: int
    ) -> list[_NullOutput]:
        """Compute nothing."""
        return [self._output] * len(residents)


def _empty_network() -> None:
    """Make networks of this process answer at once."""
    import api.bundles  # noqa: PLC0415
    import api.networks  # noqa: PLC0415

    api.networks.Engine = _NullEngine  # type: ignore[assignment,misc]
    api.bundles.read_bundle = lambda *_: None  # type: ignore[assignment,return-value]


def _build_service() -> Any:  # noqa: ANN401
    import api.pixels  # noqa: PLC0415
    from api.app import create_app  # noqa: PLC0415
    from core.platform.db.engine import Database  # noqa: PLC0415
    from core.platform.db.migrate import upgrade_to_head  # noqa: PLC0415
    from core.platform.db.tables import ModelRow  # noqa: PLC0415
    from core.settings import Settings  # noqa: PLC0415

    pixels = np.zeros((224, 224, 3), dtype=np.uint8)
    _empty_network()
    api.pixels.preprocess = lambda *_, **__: pixels  # type: ignore[assignment]
    settings = Settings.model_validate({"roles": ["inference"], "device": "cpu", "threads": 1})
    upgrade_to_head(settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    with database.write() as session:
        row = ModelRow(id="mdl_bench", name="bench", backbone="null", adapter_bytes=1, metrics={})
        row.classes = _CLASSES
        row.adapter_sha256 = row.config_sha256 = row.card_sha256 = "0" * 64
        session.add(row)
    database.dispose()
    return create_app(settings)


if __name__ == "__main__":
    main()
