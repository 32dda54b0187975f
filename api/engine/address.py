"""Where the engine listens: a Unix socket that only this user can reach, one engine at a time."""

import fcntl
import os
import socket
import stat
from pathlib import Path

from core.errors import AppError

#: `sun_path` of Linux has 108 bytes, the last of them zero.
_MAX_PATH_BYTES = 107
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_BACKLOG = 128


class SocketError(AppError):
    """The engine cannot listen at its path."""

    code = "engine_socket"


class EngineSocket:
    """A listening socket and the lock that keeps a second engine from taking its path.

    A socket that a killed engine has left behind is replaced: the lock tells that nobody owns it.

    Args:
        path: of the socket; its folder is made if need be, with mode 0700.

    Raises:
        SocketError: the path is too long, open to others, or taken.
    """

    def __init__(self, path: Path) -> None:
        path = path.absolute()
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise SocketError(
                f"{path} is longer than the {_MAX_PATH_BYTES} bytes that a socket's path may have; "
                "set IDAT_ENGINE_SOCKET to a shorter one"
            )
        _prepare_folder(path.parent)
        self._path = path
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take_lock()
            path.unlink(missing_ok=True)
            self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.listener.bind(str(path))
            path.chmod(0o600)
            self.listener.listen(_BACKLOG)
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Take the socket away and let go of the lock."""
        self.listener.close()
        self._path.unlink(missing_ok=True)
        os.close(self._lock)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SocketError(
                f"another engine listens at {self._path}; stop it, or set IDAT_ENGINE_SOCKET to "
                "another path"
            ) from error


def _prepare_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
        raise SocketError(
            f"{folder} can be entered by others, who could then ask the engine; give the socket a "
            f"folder of its own with mode 0700, as in IDAT_ENGINE_SOCKET={folder}/engine/socket"
        )
