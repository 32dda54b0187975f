"""One POST against real receivers: what counts as a reply, and that no receiver gets more."""

import resource
import ssl
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from core.clock import monotonic_s
from core.platform.webhooks.addresses import AllowedHosts
from core.platform.webhooks.targets import parse_target
from tests.fixtures.certificates import build_contexts
from tests.fixtures.receivers import (
    Handler,
    Receiver,
    babble,
    break_off,
    drip,
    drip_body,
    flood,
    flood_headers,
    hang,
    receiving,
)
from worker.webhook_request import MAX_REPLY_BYTES, RequestFailedError, post

LOCAL = ip_address("127.0.0.1")
ALLOWED = AllowedHosts.from_settings(["127.0.0.1", "hooks.test", "other.test"])
#: Long enough for a busy machine to answer well, for tests in which it is to be reached not at all.
LONG_S = 60.0


def send(
    receiver: Receiver,
    *,
    timeout_s: float = LONG_S,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    body: bytes = b"{}",
) -> int:
    target = parse_target(receiver.url("/hook?x=1", host), ALLOWED)
    return post(
        target, [LOCAL], headers={"webhook-id": "evt_1"}, body=body, timeout_s=timeout_s, tls=tls
    )


def test_the_body_and_the_headers_arrive() -> None:
    body = b'{"type":"x"}' * 20_000
    with receiving(204) as receiver:
        assert send(receiver, body=body) == 204
    (received,) = receiver.received
    assert (received.path, received.body) == ("/hook?x=1", body)
    assert received.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert received.headers["webhook-id"] == "evt_1"


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 404, 410, 429, 500, 503])
def test_any_other_status_is_returned_and_no_redirect_followed(status: int) -> None:
    with receiving() as elsewhere, receiving() as receiver:
        receiver.answer = _redirect(status, elsewhere.url())
        assert send(receiver) == status
    assert elsewhere.received == []


def _redirect(status: int, url: str) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@pytest.mark.parametrize(("answer", "status"), [(hang, None), (drip, None), (drip_body, 200)])
def test_the_deadline_holds_for_the_whole_reply(
    answer: Callable[[Handler], None], status: int | None
) -> None:
    with receiving(answer) as receiver:
        started_s = monotonic_s()
        with pytest.raises(RequestFailedError, match="no whole reply within") as caught:
            send(receiver, timeout_s=0.5)
        # Waits that each get the whole time anew would never end: `drip` goes on for ever.
        assert monotonic_s() - started_s >= 0.5
    assert caught.value.status == status


@pytest.mark.parametrize(("answer", "status"), [(flood, 200), (flood_headers, None)])
def test_no_more_than_64_kb_of_an_endless_reply_is_read(
    answer: Callable[[Handler], None], status: int | None
) -> None:
    with receiving(answer) as receiver:
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(RequestFailedError, match="longer than 64 kB") as caught:
            send(receiver)
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert caught.value.status in (status, None)
    assert grown_kb < 64 * 1024  # of the whole process, the receiver's thread included


def test_a_reply_that_just_fits() -> None:
    def answer(handler: Handler) -> None:
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        handler.wfile.write(head + b"x" * (MAX_REPLY_BYTES - len(head)))

    with receiving(answer) as receiver:
        assert send(receiver) == 200


@pytest.mark.parametrize("answer", [break_off, babble])
def test_what_is_no_reply(answer: Callable[[Handler], None]) -> None:
    with receiving(answer) as receiver, pytest.raises(RequestFailedError) as caught:
        send(receiver)
    assert caught.value.status is None


def test_nobody_listens_and_the_second_address_answers() -> None:
    with receiving() as receiver:
        pass
    with pytest.raises(RequestFailedError, match="refused"):
        send(receiver)
    with receiving() as receiver:
        target = parse_target(receiver.url(host="hooks.test"), ALLOWED)
        addresses = [ip_address("127.0.0.2"), LOCAL]
        assert post(target, addresses, headers={}, body=b"", timeout_s=LONG_S) == 200


def test_the_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url("/"))
        assert send(receiver) == 200
    assert proxy.received == []


class TestTls:
    """The connection goes to the checked address; the certificate is the name's."""

    def test_name_and_authority_are_right(self, tmp_path: Path) -> None:
        server, client = build_contexts(tmp_path, "hooks.test")
        with receiving(tls=server) as receiver:
            assert send(receiver, host="hooks.test", tls=client) == 200
            assert send(receiver, host="hooks.test.", tls=client) == 200
        assert receiver.received[0].headers["host"] == f"hooks.test:{receiver.port}"

    def test_the_name_is_told_to_the_server(self, tmp_path: Path) -> None:
        server, client = build_contexts(tmp_path, "hooks.test")
        told: list[str | None] = []
        server.sni_callback = lambda _socket, name, _context: told.append(name)
        with receiving(tls=server) as receiver:
            send(receiver, host="hooks.test", tls=client)
        assert told == ["hooks.test"]

    def test_another_name_is_refused(self, tmp_path: Path) -> None:
        server, client = build_contexts(tmp_path, "other.test")
        with (
            receiving(tls=server) as receiver,
            pytest.raises(RequestFailedError, match="no trusted connection"),
        ):
            send(receiver, host="hooks.test", tls=client)
        assert receiver.received == []

    def test_an_unknown_authority_is_refused(self, tmp_path: Path) -> None:
        server, _client = build_contexts(tmp_path, "hooks.test")
        with (
            receiving(tls=server) as receiver,
            pytest.raises(RequestFailedError, match="no trusted connection"),
        ):
            send(receiver, host="hooks.test")
        assert receiver.received == []

    def test_a_literal_address_is_verified_too(self, tmp_path: Path) -> None:
        server, client = build_contexts(tmp_path, "127.0.0.1")
        with receiving(tls=server) as receiver:
            assert send(receiver, tls=client) == 200
        server, client = build_contexts(tmp_path, "127.0.0.2")
        with receiving(tls=server) as receiver, pytest.raises(RequestFailedError):
            send(receiver, tls=client)

    def test_a_drip_over_tls_ends_as_well(self, tmp_path: Path) -> None:
        server, client = build_contexts(tmp_path, "hooks.test")
        with (
            receiving(drip_body, tls=server) as receiver,
            pytest.raises(RequestFailedError, match="no whole reply within"),
        ):
            send(receiver, host="hooks.test", tls=client, timeout_s=1.0)

    def test_a_server_that_never_shakes_hands(self) -> None:
        with receiving(hang) as receiver:  # speaks no TLS, and waits for a request's line
            target = parse_target(f"https://hooks.test:{receiver.port}/", ALLOWED)
            with pytest.raises(RequestFailedError):
                post(target, [LOCAL], headers={}, body=b"", timeout_s=0.5)
