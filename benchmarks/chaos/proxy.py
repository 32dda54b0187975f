"""A TCP proxy whose whole link can be cut, stalled, or made to answer with an error of S3."""

import contextlib
import socket
import struct
import threading

_CHUNK_BYTES = 1 << 16
_CONNECT_S = 5.0

#: What a busy S3 server says.
_SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>no</Message></Error>"
_SAY_503 = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN)
) + _SLOW_DOWN


class Proxy:
    """Forwards every connection to one port of this machine, unless a fault is on.

    Attributes:
        port: where to connect in the server's place.
    """

    def __init__(self, server_host: str, server_port: int) -> None:
        """Listen on a free port."""
        self._server = (server_host, server_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open = threading.Event()
        self._open.set()
        self._refuses = False
        self._lock = threading.Lock()
        self._live: set[socket.socket] = set()
        self._acceptor = threading.Thread(target=self._accept, name="proxy", daemon=True)
        self._acceptor.start()

    def reset(self) -> int:
        """Close every connection with RST in place of FIN; return how many there were."""
        with self._lock:
            live = list(self._live)
        for each in live:
            _reset(each)
        return len(live) // 2

    def stall(self) -> None:
        """Move no byte any more, of old connections and new ones, until `heal`."""
        self._open.clear()

    def refuse(self) -> None:
        """Answer every request on a new connection with 503 until `heal`; cut the old ones."""
        self._refuses = True
        self.reset()

    def heal(self) -> None:
        """Let everything through again."""
        self._refuses = False
        self._open.set()

    def close(self) -> None:
        """Listen no more and end every connection."""
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Connect on, or reset the client where the server is gone."""
        if self._refuses:
            with contextlib.suppress(OSError), client:
                client.recv(_CHUNK_BYTES)
                client.sendall(_SAY_503)
                # The rest of the request is taken in, or closing would reset the answer away.
                client.shutdown(socket.SHUT_WR)
                while client.recv(_CHUNK_BYTES):
                    pass
            return
        try:
            server = socket.create_connection(self._server, timeout=_CONNECT_S)
            server.settimeout(None)
        except OSError:
            _reset(client)
            client.close()
            return
        with self._lock:
            self._live |= {client, server}
        other_way = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        other_way.start()
        self._pump(client, server)
        other_way.join()
        with self._lock:
            self._live -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                self._open.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _reset(one: socket.socket) -> None:
    """Make both ways of a connection fail at once; whoever serves it closes it with RST."""
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.shutdown(socket.SHUT_RDWR)
