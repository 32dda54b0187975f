"""A receiver of webhooks: an HTTP server in a thread that writes down what it is told."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.chaos.ledger import Ledger

ENDPOINTS = "/v1/webhook_endpoints"


@contextlib.contextmanager
def open_receiver(ledger: Ledger) -> Iterator[str]:
    """Take events in until the end of the block; yield the address to send them to."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name is the base class's
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ledger.hear(self.headers["webhook-id"], body["data"]["id"], body["type"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: object) -> None:
            """A sender that was killed has hung up: it will send again."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="receiver")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/events"
        finally:
            server.shutdown()
            thread.join()
