"""`python -m api`: serve the API with the settings of the environment."""

import argparse
import logging
import math
import socket
import sys

import uvicorn
from pydantic import ValidationError

from api.app import UnsafeBindingError, create_app
from api.heap import settle_heap
from api.server import DrainingServer
from core.platform.storage.errors import StoreMisconfiguredError
from core.platform.storage.factory import check_store
from core.settings import Settings, describe_wrong_settings

_GRACE_S = 30
#: Bounds how many connections wait in the kernel while all threads are busy.
_BACKLOG = 2048


def main() -> int:
    """Serve until told to stop; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m api",
        description="Serve the HTTP API. Configured by IDAT_* variables (see "
        "docs/configuration.md); prints its URL once it listens; SIGTERM stops it.",
    )
    parser.parse_args()
    try:
        settings = Settings()
        check_store(settings)
        app = create_app(settings)
        listener = _listen(settings)
    except ValidationError as error:
        return _refuse(describe_wrong_settings(error))
    except (UnsafeBindingError, StoreMisconfiguredError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}")
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # It would tell, at every probe of readiness, which database it looked into.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    settle_heap()
    with listener:
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"http://{host}:{port}", flush=True)  # noqa: T201 - how a launcher learns the port
        config = uvicorn.Config(
            app,
            access_log=False,  # api.middleware writes one, with request ids
            log_config=None,
            server_header=False,
            # What has been accepted has this long to be answered, an upload included.
            timeout_graceful_shutdown=max(_GRACE_S, math.ceil(settings.inference_deadline_s) + 5),
        )
        DrainingServer(config, app.state.lifecycle, settings.drain_s).run(sockets=[listener])
    return 0


def _listen(settings: Settings) -> socket.socket:
    """Bind before anything is started, so that a taken port is told in one line."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server(
        (settings.host, settings.port),
        family=family,
        backlog=_BACKLOG,
        reuse_port=settings.api_processes > 1,  # the kernel deals connections out
    )


def _refuse(reason: str) -> int:
    print(f"idat api: {reason}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main())
