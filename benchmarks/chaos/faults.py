"""The faults: what each does to the processes, the servers and the disk of a run."""

import contextlib
import errno
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg
import redis
from sqlalchemy import make_url

from benchmarks.chaos.processes import (
    Service,
    find_owned,
    list_children,
    list_descendants,
    signal_all,
)
from benchmarks.chaos.schedule import Draw
from benchmarks.chaos.targets import NotStruckError, Targets
from core.clock import monotonic_s

#: An orderly end must not take longer; the supervisor gives its child 25 s of them.
STOP_S = 60.0

_FIND_S = 10.0
_CHUNK = bytes(1 << 20)


def _between(draw: Draw, shortest_s: float, longest_s: float) -> float:
    return shortest_s + draw.length * (longest_s - shortest_s)


def _sleep(duration_s: float) -> None:
    threading.Event().wait(duration_s)


def _kill(services: Sequence[Service], targets: Targets, draw: Draw) -> str:
    with targets.take(services, draw.pick) as service:
        return f"{service.name} {service.send(signal.SIGKILL, ends_it=True)}"


def _kill_api(targets: Targets, draw: Draw) -> str:
    return _kill(targets.apis, targets, draw)


def _kill_worker(targets: Targets, draw: Draw) -> str:
    return _kill(targets.workers, targets, draw)


def _kill_pool(targets: Targets, draw: Draw) -> str:
    with targets.take(targets.workers, draw.pick) as worker:
        pool = list_children(worker.pid or 0)
        # Rather one that supervises: an idle one is no loss.
        busy = [pid for pid in pool if list_children(pid)] or pool
        if not busy:
            raise NotStruckError
        pid = busy[int(draw.pick * len(busy))]
        signal_all([pid], signal.SIGKILL)
        return f"{worker.name} {pid}"


def _kill_trainer(targets: Targets, draw: Draw) -> str:
    deadline_s = monotonic_s() + _FIND_S
    while monotonic_s() < deadline_s:
        if found := find_owned(targets.data_dir, "worker.trainer"):
            # At any moment of its life, not always in its first one.
            _sleep(_between(draw, 0, 6))
            victim = found[int(draw.pick * len(found))]
            if victim.pid in [each.pid for each in find_owned(targets.data_dir, "worker.trainer")]:
                signal_all([victim.pid], signal.SIGKILL)
                return f"{victim.pid} {Path(victim.command.split()[-1]).name}"
        _sleep(0.1)
    raise NotStruckError


def _pause_worker(targets: Targets, draw: Draw) -> str:
    """Stop a worker and all below it for longer than its lease, and let it wake up again."""
    if not targets.stopping.acquire(blocking=False):
        raise NotStruckError
    try:
        # Rather one that trains: what the other has taken over, it may want to write.
        training = {each.pid for each in find_owned(targets.data_dir, "worker.trainer")}
        busy = [each for each in targets.workers if training & set(_list_tree(each))]
        with targets.take(busy or targets.workers, draw.pick) as worker:
            worker.send(signal.SIGSTOP, ends_it=False)
            tree = _list_tree(worker)
            signal_all(tree, signal.SIGSTOP)
            duration_s = targets.lease_ttl_s * _between(draw, 1.4, 2.0)
            try:
                _sleep(duration_s)
            finally:
                signal_all(tree, signal.SIGCONT)
            return f"{worker.name} and {len(tree) - 1} below it, {duration_s:.1f} s"
    finally:
        targets.stopping.release()


def _list_tree(service: Service) -> list[int]:
    pid = service.pid
    return [] if pid is None else [pid, *list_descendants(pid)]


def _restart(services: Sequence[Service], targets: Targets, draw: Draw) -> str:
    with targets.take(services, draw.pick) as service:
        pid = service.send(signal.SIGTERM, ends_it=True)
        started_s = monotonic_s()
        if not _wait_for_end(pid, STOP_S):
            targets.on_broken(service.name, f"did not end within {STOP_S:.0f} s of SIGTERM")
            signal_all([pid, *list_descendants(pid)], signal.SIGKILL)
        return f"{service.name} {pid}, ended after {monotonic_s() - started_s:.1f} s"


def _wait_for_end(pid: int, timeout_s: float) -> bool:
    """Wait until a process is gone; its keeper buries it."""
    deadline_s = monotonic_s() + timeout_s
    while monotonic_s() < deadline_s:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        _sleep(0.1)
    return False


def _restart_api(targets: Targets, draw: Draw) -> str:
    return _restart(targets.apis, targets, draw)


def _restart_worker(targets: Targets, draw: Draw) -> str:
    return _restart(targets.workers, targets, draw)


def _fill_disk(targets: Targets, draw: Draw) -> str:
    duration_s = _between(draw, 1, 6)
    filling = targets.data_dir / "filling"
    written = 0
    try:
        with filling.open("wb", buffering=0) as file:
            try:
                while True:
                    written += file.write(_CHUNK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        _sleep(duration_s)
    finally:
        filling.unlink(missing_ok=True)
    return f"{written >> 20} MiB, {duration_s:.1f} s"


def _lock_database(targets: Targets, draw: Draw) -> str:
    """Let nobody write: SQLite's one lock, or PostgreSQL's on the table of jobs."""
    duration_s = _between(draw, 1, 9)
    url = make_url(targets.database_url)
    if url.get_backend_name() == "sqlite":
        connection = sqlite3.connect(url.database or "", timeout=20, isolation_level=None)
        with contextlib.closing(connection):
            try:
                connection.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                raise NotStruckError from error
            _sleep(duration_s)
            connection.execute("ROLLBACK")
    else:
        try:
            with psycopg.connect(targets.database_url) as session, session.transaction():
                session.execute("SET LOCAL lock_timeout = '20s'")
                session.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
                _sleep(duration_s)
        except psycopg.OperationalError as error:
            # Another fault has ended the session that held the lock.
            raise NotStruckError from error
    return f"{duration_s:.1f} s"


def _terminate_sessions(targets: Targets, _draw: Draw) -> str:
    with psycopg.connect(targets.database_url, autocommit=True) as session:
        ended = session.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ).fetchone()
    if not ended or not ended[0]:
        raise NotStruckError
    return f"{ended[0]} sessions"


def _reset(link: str) -> "Strike":
    def strike(targets: Targets, _draw: Draw) -> str:
        deadline_s = monotonic_s() + _FIND_S
        while monotonic_s() < deadline_s:
            if count := targets.links[link].reset():
                return f"{count} connections"
            _sleep(0.02)
        raise NotStruckError

    return strike


def _stall(link: str) -> "Strike":
    def strike(targets: Targets, draw: Draw) -> str:
        duration_s = _between(draw, 1, 9)
        targets.links[link].stall()
        try:
            _sleep(duration_s)
        finally:
            targets.links[link].heal()
        return f"{duration_s:.1f} s"

    return strike


def _refuse_store(targets: Targets, draw: Draw) -> str:
    duration_s = _between(draw, 1, 9)
    targets.links["store"].refuse()
    try:
        _sleep(duration_s)
    finally:
        targets.links["store"].heal()
    return f"503 for {duration_s:.1f} s"


def _flush_redis(targets: Targets, _draw: Draw) -> str:
    assert targets.broker is not None
    client = redis.Redis(port=targets.broker.port, socket_timeout=5, socket_connect_timeout=2)
    with contextlib.closing(client):
        try:
            keys = client.dbsize()
            client.flushall()
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise NotStruckError from error
    return f"{keys} keys"


def _kill_redis(targets: Targets, draw: Draw) -> str:
    assert targets.broker is not None
    return _kill([targets.broker], targets, draw)


def _pause_redis(targets: Targets, draw: Draw) -> str:
    assert targets.broker is not None
    duration_s = _between(draw, 1, 9)
    with targets.take([targets.broker], draw.pick) as broker:
        pid = broker.send(signal.SIGSTOP, ends_it=False)
        try:
            _sleep(duration_s)
        finally:
            signal_all([pid], signal.SIGCONT)
    return f"{duration_s:.1f} s"


Strike = Callable[[Targets, Draw], str]

#: Kind -> what it does; it returns what was struck, once that is healed.
FAULTS: dict[str, Strike] = {
    "kill_api": _kill_api,
    "kill_worker": _kill_worker,
    "kill_pool": _kill_pool,
    "kill_trainer": _kill_trainer,
    "pause_worker": _pause_worker,
    "restart_api": _restart_api,
    "restart_worker": _restart_worker,
    "lock_database": _lock_database,
    "fill_disk": _fill_disk,
    "terminate_sessions": _terminate_sessions,
    "reset_database": _reset("database"),
    "stall_database": _stall("database"),
    "flush_redis": _flush_redis,
    "kill_redis": _kill_redis,
    "pause_redis": _pause_redis,
    "reset_redis": _reset("redis"),
    "reset_store": _reset("store"),
    "stall_store": _stall("store"),
    "refuse_store": _refuse_store,
}

#: Faults of something that processes need to start, or that is told in the answers of others.
OF_SURROUNDINGS = frozenset(FAULTS) - {
    "kill_api",
    "kill_worker",
    "kill_pool",
    "kill_trainer",
    "pause_worker",
    "restart_api",
    "restart_worker",
}


def list_kinds(targets: Targets) -> list[str]:
    """Return the kinds of faults that can strike this run."""
    missing = set() if targets.has_small_disk else {"fill_disk"}
    if targets.broker is None:
        missing |= {"flush_redis", "kill_redis", "pause_redis"}
    if make_url(targets.database_url).get_backend_name() == "sqlite":
        missing.add("terminate_sessions")
    for link in ("database", "redis", "store"):
        if link not in targets.links:
            missing |= {f"reset_{link}", f"stall_{link}", f"refuse_{link}"}
    return [kind for kind in FAULTS if kind not in missing]
