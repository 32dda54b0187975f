"""Nobody but this user reaches the engine, and there is one of it."""

import socket
import stat

import pytest

from api.engine.address import EngineSocket, SocketError


def test_only_the_user_can_reach_it(tmp_path):
    path = tmp_path / "new" / "socket"
    listening = EngineSocket(path)
    try:
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        listening.close()
    assert not path.exists()


def test_a_folder_that_others_can_enter_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o755)
    with pytest.raises(SocketError, match="0700"):
        EngineSocket(folder / "socket")


def test_the_second_engine_is_refused_and_the_first_goes_on(tmp_path):
    path = tmp_path / "engine" / "socket"
    first = EngineSocket(path)
    try:
        with pytest.raises(SocketError, match="another engine"):
            EngineSocket(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        first.close()
    EngineSocket(path).close()


def test_what_a_killed_engine_has_left_is_replaced(tmp_path):
    path = tmp_path / "engine" / "socket"
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    EngineSocket(path).close()


def test_a_path_that_no_socket_can_have(tmp_path):
    with pytest.raises(SocketError, match="shorter"):
        EngineSocket(tmp_path / ("x" * 120))
