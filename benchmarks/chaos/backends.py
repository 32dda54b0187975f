"""The back ends of a run: a disk, a database, a broker and a store of its own, and their end."""

import contextlib
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import boto3
import botocore.config
import botocore.exceptions
import psycopg
import redis
from psycopg import sql
from sqlalchemy import make_url

from benchmarks.chaos.processes import Service, find_free_port, python_module
from benchmarks.chaos.proxy import Proxy
from core.clock import monotonic_s
from core.errors import InvalidError
from core.settings import Settings, build_environment

BackendName = Literal["embedded", "scaled"]
StoreName = Literal["folder", "s3"]

_BUCKET = "chaos"
_SERVER_START_S = 60.0
#: Room for some hundred jobs, and soon full.
_DISK = "size=256m"


@dataclass
class Backend:
    """What the service runs on.

    Attributes:
        data_dir: of every process.
        has_small_disk: whether it is a file system of its own.
        environment: settings that lead the service to its database, broker and store.
        settings: that lead the harness there, past the proxies.
        links: name -> proxy.
        servers: processes that belong to it.
        broker: the Redis server among them.
    """

    data_dir: Path
    has_small_disk: bool
    environment: dict[str, str]
    settings: Settings
    links: dict[str, Proxy] = field(default_factory=dict)
    servers: list[Service] = field(default_factory=list)
    broker: Service | None = None


@contextlib.contextmanager
def open_backend(
    name: BackendName, store: StoreName, *, folder: Path, postgresql_url: str
) -> Iterator[Backend]:
    """Start the back end and remove it at the end of the block.

    Args:
        name: `embedded` is SQLite and a folder without a broker.
        store: of `scaled`.
        folder: for the data and the logs; the caller removes it.
        postgresql_url: of a server on which a database may be created.

    Raises:
        InvalidError: a server is missing; says which.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as closing:
        data_dir, has_small_disk = closing.enter_context(_open_disk(folder / "data"))
        fields: dict[str, Any] = {"data_dir": data_dir}
        backend = Backend(data_dir, has_small_disk, {}, Settings.model_validate(fields))
        if name == "embedded":
            yield backend
            return
        database_url = closing.enter_context(_create_database(postgresql_url))
        _start_redis(backend, folder, closing)
        fields |= {"database_url": database_url}
        database = make_url(database_url)
        link = _open_link(backend, "database", database.host or "", database.port or 5432, closing)
        proxied = database.set(host="127.0.0.1", port=link.port)
        assert backend.broker is not None
        broker = _open_link(backend, "redis", "127.0.0.1", backend.broker.port, closing)
        backend.environment |= {
            "IDAT_DATABASE_URL": proxied.render_as_string(hide_password=False),
            "IDAT_BROKER_URL": f"redis://127.0.0.1:{broker.port}/0",
        }
        if store == "s3":
            fields |= _start_s3(backend, logs, closing)
        backend.settings = Settings.model_validate(fields)
        yield backend


@contextlib.contextmanager
def _open_disk(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield a folder, on a small file system of its own if this user may mount one."""
    path.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", _DISK, "tmpfs", str(path)]
    is_mounted = (
        mount is not None
        and subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603
    )
    try:
        yield path.resolve(), is_mounted
    finally:
        if is_mounted:
            # Lazily: whoever looks into it at this moment must not keep the rest from its end.
            subprocess.run(["umount", "--lazy", str(path)], check=True)  # noqa: S603, S607


@contextlib.contextmanager
def _create_database(server_url: str) -> Iterator[str]:
    name = f"idat_chaos_{uuid.uuid4().hex[:12]}"
    try:
        server = psycopg.connect(server_url, autocommit=True, connect_timeout=5)
    except psycopg.OperationalError as error:
        raise InvalidError(
            f"PostgreSQL cannot be reached; name it with --postgresql: {error}"
        ) from error
    with contextlib.closing(server):
        server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield make_url(server_url).set(database=name).render_as_string(hide_password=False)
        finally:
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _start_redis(backend: Backend, folder: Path, closing: contextlib.ExitStack) -> None:
    binary = shutil.which("redis-server")
    if binary is None:
        raise InvalidError(
            "redis-server is not installed, and --backend scaled kills one of its own"
        )
    port = find_free_port()
    # It remembers nothing: a kill loses every message, as the worst of brokers would.
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    command = [binary, *options, "--dir", str(folder)]
    backend.broker = _start_server(
        backend, "redis", command, port=port, logs=folder / "logs", closing=closing
    )
    client = redis.Redis(port=port)
    with contextlib.closing(client):
        _wait_for(client.ping, (redis.ConnectionError,), backend.broker)


def _start_s3(backend: Backend, logs: Path, closing: contextlib.ExitStack) -> dict[str, Any]:
    port = find_free_port()
    command = python_module("moto.server", "-H", "127.0.0.1", "-p", str(port))
    server = _start_server(backend, "s3", command, port=port, logs=logs, closing=closing)
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="chaos",
        aws_secret_access_key="chaos-secret",  # noqa: S106 - of a server that believes everybody
        config=botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=5),
    )
    with contextlib.closing(client):
        _wait_for(
            lambda: client.create_bucket(Bucket=_BUCKET),
            (botocore.exceptions.BotoCoreError,),
            server,
        )
    link = _open_link(backend, "store", "127.0.0.1", port, closing)
    fields = {
        "storage_url": f"s3://{_BUCKET}/blobs",
        "s3_region": "us-east-1",
        "s3_access_key_id": "chaos",
        "s3_secret_access_key": "chaos-secret",
    }
    backend.environment |= {f"IDAT_{key.upper()}": value for key, value in fields.items()}
    backend.environment |= {
        "IDAT_S3_ENDPOINT_URL": f"http://127.0.0.1:{link.port}",
        "IDAT_S3_PATH_STYLE": "true",
        "IDAT_S3_TIMEOUT_S": "5",
    }
    own = {"s3_endpoint_url": f"http://127.0.0.1:{port}", "s3_path_style": True}
    return {**fields, **own}


def _start_server(
    backend: Backend,
    name: str,
    command: list[str],
    *,
    port: int,
    logs: Path,
    closing: contextlib.ExitStack,
) -> Service:
    environment = build_environment({"IDAT_DATA_DIR": str(backend.data_dir)})
    server = Service(name, command, environment=environment, logs=logs, port=port)
    backend.servers.append(server)
    server.start()
    closing.callback(server.end)
    return server


def _open_link(
    backend: Backend, name: str, host: str, port: int, closing: contextlib.ExitStack
) -> Proxy:
    proxy = backend.links[name] = Proxy(host, port)
    closing.callback(proxy.close)
    return proxy


def _wait_for(ask: Any, errors: tuple[type[Exception], ...], server: Service) -> None:  # noqa: ANN401
    deadline_s = monotonic_s() + _SERVER_START_S
    while True:
        try:
            ask()
        except errors as error:
            if server.wait(0.2) is not None or monotonic_s() > deadline_s:
                raise InvalidError(f"{server.name} did not start: {server.tail()}") from error
        else:
            return
