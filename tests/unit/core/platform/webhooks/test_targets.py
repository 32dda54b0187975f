"""Which URLs a delivery may go to: by their text, and by the addresses behind their names."""

import threading
from ipaddress import ip_address

import pytest

from core.platform.webhooks.addresses import AllowedHosts, is_public
from core.platform.webhooks.targets import (
    TargetError,
    UnresolvedHostError,
    parse_target,
    resolve_target,
)

NOBODY = AllowedHosts()
PUBLIC = "93.184.216.34"


def check(url: str, allowed: AllowedHosts = NOBODY, answers: tuple[str, ...] = (PUBLIC,)) -> None:
    target = parse_target(url, allowed)
    resolve_target(target, allowed, timeout_s=5, resolver=lambda _host, _port: answers)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.0.0.1:8000/",
        "http://127.1.2.3/",
        "http://0.0.0.0/",
        "http://10.0.0.5/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://192.0.0.192/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fe80::1]/",
        "http://[fe80::1%25eth0]/",
        "http://[fd00:ec2::254]/",
        "http://[ff02::1]/",
        # Other ways to write an address, which resolvers take.
        "http://0x7f000001/",
        "http://2130706433/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0x7f.0.0.1/",
        "http://127.0.0.0x1/",
        "http://127.0.0.1./",
        # Other things than http, and other things in a URL.
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://example.com/",
        "//example.com/",
        "example.com/hook",
        "http:///hook",
        "http://",
        "",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://example.com@127.0.0.1/",
        "http://@example.com/",
        "http://example.com/#part",
        "http://example.com/#",
        "http://example.com\\@127.0.0.1/",
        "http://exa mple.com/",
        "http://example.com/\r\nX-Evil: 1",
        "http://example.com/\0",
        "http://exämple.com/",
        "http://example.com:0/",
        "http://example.com:22/",
        "http://example.com:25/",
        "http://example.com:443x/",
        "http://example.com:99999/",
        "http://[::1/",
        "http://.example.com/",
        "http://example..com/",
        f"http://{'a' * 64}.com/",
        f"http://example.com/{'a' * 2000}",
    ],
)
def test_refused_by_its_text(url: str) -> None:
    with pytest.raises(TargetError):
        parse_target(url, NOBODY)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com", ("https", "example.com", 443, "/", "example.com")),
        ("HTTP://Example.COM:80/a", ("http", "example.com", 80, "/a", "example.com")),
        (
            "https://example.com:8443/a?b=c",
            ("https", "example.com", 8443, "/a?b=c", "example.com:8443"),
        ),
        ("https://93.184.216.34/%20", ("https", PUBLIC, 443, "/%20", PUBLIC)),
        (
            "https://[2606:2800::1]:8443/",
            ("https", "2606:2800::1", 8443, "/", "[2606:2800::1]:8443"),
        ),
        (
            "https://xn--exmple-cua.com/?q",
            ("https", "xn--exmple-cua.com", 443, "/?q", "xn--exmple-cua.com"),
        ),
        ("https://3com.com./", ("https", "3com.com.", 443, "/", "3com.com.")),
    ],
)
def test_taken_apart(url: str, expected: tuple[str, str, int, str, str]) -> None:
    target = parse_target(url, NOBODY)
    assert (target.scheme, target.host, target.port, target.path, target.authority) == expected


@pytest.mark.parametrize(
    "answers",
    [
        ("127.0.0.1",),
        ("10.1.2.3",),
        ("169.254.169.254",),
        ("::1",),
        ("::ffff:10.0.0.1",),
        ("fe80::1%eth0",),
        (PUBLIC, "192.168.0.1"),  # one is enough
        ("2606:2800::1", "::1"),
    ],
)
def test_refused_by_an_address_behind_its_name(answers: tuple[str, ...]) -> None:
    with pytest.raises(TargetError) as caught:
        check("https://hooks.example.com/", answers=answers)
    assert not isinstance(caught.value, UnresolvedHostError)
    # Names of the inside keep their addresses to themselves.
    assert not any(answer in caught.value.message for answer in answers)


def test_the_addresses_that_were_checked_are_returned_each_once() -> None:
    target = parse_target("https://hooks.example.com/", NOBODY)
    answers = (PUBLIC, "2606:2800::1", PUBLIC)
    found = resolve_target(target, NOBODY, timeout_s=5, resolver=lambda *_: answers)
    assert found == [ip_address(PUBLIC), ip_address("2606:2800::1")]


def test_an_address_in_the_url_is_asked_of_nobody() -> None:
    def fail(_host: str, _port: int) -> list[str]:
        raise AssertionError("asked")

    target = parse_target(f"https://{PUBLIC}/", NOBODY)
    assert resolve_target(target, NOBODY, timeout_s=5, resolver=fail) == [ip_address(PUBLIC)]


def test_what_the_operator_allows() -> None:
    allowed = AllowedHosts.from_settings(["10.1.0.0/16", "Hooks.Internal", "127.0.0.1", "[::1]"])
    check("http://10.1.2.3/", allowed)
    check("http://10.1.2.3:25/", allowed)
    check("http://127.0.0.1:9/", allowed)
    check("http://[::1]/", allowed)
    check("http://[::ffff:10.1.2.3]/", allowed)
    check("http://hooks.internal:81/", allowed, ("192.168.7.7",))
    check("http://hooks.internal./", allowed, ("192.168.7.7",))
    check("http://other.internal/", allowed, ("10.1.9.9",))
    for url, answers in (
        ("http://10.2.0.1/", ()),
        ("http://127.0.0.2/", ()),
        ("http://other.internal/", ("192.168.7.7",)),
        ("http://sub.hooks.internal/", ("192.168.7.7",)),
        ("http://hooks.internal:0/", ("192.168.7.7",)),
        ("http://other.internal:81/", ("10.1.9.9",)),
    ):
        with pytest.raises(TargetError):
            check(url, allowed, answers)


@pytest.mark.parametrize(
    "entry", ["10.1.2.3/16", "http://a", "a b", "", "*", "0x7f000001", "127.1"]
)
def test_what_the_operator_cannot_mean(entry: str) -> None:
    with pytest.raises(ValueError, match="neither a host name"):
        AllowedHosts.from_settings([entry])


def test_a_name_without_addresses_and_a_silent_name_service() -> None:
    target = parse_target("https://nowhere.example/", NOBODY)

    def refuse(_host: str, _port: int) -> list[str]:
        raise OSError("Name or service not known")

    with pytest.raises(UnresolvedHostError, match="not known"):
        resolve_target(target, NOBODY, timeout_s=5, resolver=refuse)
    with pytest.raises(UnresolvedHostError, match="no address"):
        resolve_target(target, NOBODY, timeout_s=5, resolver=lambda *_: [])

    over = threading.Event()

    def be_silent(_host: str, _port: int) -> list[str]:
        over.wait(60)
        return [PUBLIC]

    with pytest.raises(UnresolvedHostError, match="did not answer"):
        resolve_target(target, NOBODY, timeout_s=0.05, resolver=be_silent)
    over.set()


@pytest.mark.parametrize(
    "text", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses(text: str) -> None:
    assert is_public(ip_address(text))
