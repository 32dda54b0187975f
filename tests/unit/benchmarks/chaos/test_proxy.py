"""The proxy lets everything through, and otherwise does what its faults say."""

import contextlib
import socket
import threading

import pytest

from benchmarks.chaos.proxy import Proxy


@pytest.fixture
def echo():
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection:
            try:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def proxy(echo):
    proxy = Proxy("127.0.0.1", echo)
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        yield client


def say(client, data):
    client.sendall(data)
    return client.recv(1 << 16)


def test_lets_everything_through(client):
    assert say(client, b"hello") == b"hello"


def test_reset_ends_live_connections_and_lets_new_ones_in(proxy, client):
    assert say(client, b"hello") == b"hello"
    assert proxy.reset() == 1
    with contextlib.suppress(ConnectionError):
        assert say(client, b"again") == b""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as new:
        assert say(new, b"new") == b"new"


def test_stall_holds_bytes_back_and_loses_none(proxy, client):
    assert say(client, b"hello") == b"hello"
    proxy.stall()
    client.sendall(b"late")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(10)
    proxy.heal()
    client.settimeout(10)
    assert client.recv(10) == b"late"


def test_refuse_answers_503_until_it_is_healed(proxy):
    proxy.refuse()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        assert say(client, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        assert say(client, b"hello") == b"hello"


def test_server_that_is_gone_ends_the_connection_and_not_the_proxy():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    proxy = Proxy("127.0.0.1", port)
    with (
        contextlib.suppress(ConnectionError),
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
    ):
        assert client.recv(10) == b""
    with (
        socket.create_server(("127.0.0.1", port)) as server,
        socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
    ):
        client.sendall(b"hello")
        connection, _ = server.accept()
        with connection:
            assert connection.recv(10) == b"hello"
    proxy.close()
