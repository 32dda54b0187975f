"""`python -m api.engine`: the networks of a device in a process of their own.

Listens at `IDAT_ENGINE_SOCKET` for the processes of `python -m api` that have the same setting.
SIGTERM lets it finish what it has accepted.
"""

import argparse
import asyncio
import logging
import signal
import sys

from pydantic import ValidationError
from uvicorn.loops.auto import auto_loop_factory

from api.engine.address import EngineSocket, SocketError
from api.engine.server import EngineServer
from api.heap import settle_heap
from api.networks import LocalNetworks
from core.clock import monotonic_s
from core.platform.db.engine import Database
from core.platform.storage.base import BlobStore
from core.platform.storage.errors import StoreMisconfiguredError
from core.platform.storage.factory import build_store, check_store
from core.settings import Settings, describe_wrong_settings

logger = logging.getLogger(__name__)

_WRONG_SETTINGS = 2
_TICK_S = 0.05
_GRACE_S = 5.0


def main() -> int:
    """Serve until told to stop; return the exit code."""
    argparse.ArgumentParser(prog="python -m api.engine", description=__doc__).parse_args()
    try:
        settings = Settings()
        check_store(settings)
        path = settings.resolved_engine_socket
        if path is None:
            return _refuse("IDAT_ENGINE_SOCKET is empty: say where the engine shall listen")
        engine_socket = EngineSocket(path)
    except ValidationError as error:
        return _refuse(describe_wrong_settings(error))
    except (SocketError, StoreMisconfiguredError, OSError) as error:
        return _refuse(str(error))
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settle_heap()
    database = Database(settings.resolved_database_url)
    try:
        # The loop that fronts have: half of what a request costs here is its reading and waking up.
        with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
            runner.run(_serve(settings, build_store(settings), database, engine_socket))
    finally:
        engine_socket.close()
        database.dispose()
    return 0


async def _serve(
    settings: Settings, store: BlobStore, database: Database, engine_socket: EngineSocket
) -> None:
    stopping = asyncio.Event()
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    server = EngineServer()
    networks = LocalNetworks(
        settings,
        store,
        database,
        deliver=server.deliver,
        find_rate=server.find_rate,
        weight_of=server.weight_of,
    )
    await server.open(networks, engine_socket.listener)
    print(settings.resolved_engine_socket, flush=True)  # noqa: T201 - how a launcher learns that it listens
    await stopping.wait()
    logger.info("leaving: what has been accepted is finished first")
    server.leave()
    give_up_s = monotonic_s() + settings.inference_deadline_s + _GRACE_S
    while not server.is_idle and signals == 1 and monotonic_s() < give_up_s:  # noqa: ASYNC110 - once
        await asyncio.sleep(_TICK_S)
    await server.close()
    await asyncio.to_thread(networks.close)


def _refuse(reason: str) -> int:
    print(f"idat engine: {reason}", file=sys.stderr)  # noqa: T201
    return _WRONG_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
