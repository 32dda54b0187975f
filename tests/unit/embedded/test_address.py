import socket

import pytest

from core.settings import Settings
from embedded.address import PortTakenError, choose_address


@pytest.fixture
def taken_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_with_default_port(port):
    # As if `port` were the default: nothing was set by the user.
    return Settings.model_construct(_fields_set=set(), port=port)


class TestChooseAddress:
    def test_takes_the_port_asked_for(self):
        port = free_port()

        address = choose_address(Settings(host="127.0.0.1", port=port))

        assert (address.port, address.url, address.note) == (port, f"http://127.0.0.1:{port}", "")

    def test_port_zero_picks_one_that_can_be_bound(self):
        address = choose_address(Settings(host="127.0.0.1", port=0))

        with socket.socket() as server:
            server.bind(("127.0.0.1", address.port))
        assert address.note == ""

    def test_refuses_a_taken_port_that_was_asked_for(self, taken_port):
        with pytest.raises(PortTakenError, match=f"port {taken_port} of 127.0.0.1 is in use"):
            choose_address(Settings(host="127.0.0.1", port=taken_port))

    def test_leaves_a_taken_default_port_and_says_so(self, taken_port):
        address = choose_address(settings_with_default_port(taken_port))

        assert address.port != taken_port
        assert f"port {taken_port} is in use" in address.note

    def test_shows_loopback_for_the_wildcard(self):
        address = choose_address(Settings(host="0.0.0.0", port=0, api_keys="k"))

        assert address.url == f"http://127.0.0.1:{address.port}"

    def test_a_host_of_another_machine_is_not_called_taken(self):
        with pytest.raises(OSError, match="assign"):
            choose_address(Settings(host="192.0.2.1", port=8000, api_keys="k"))
