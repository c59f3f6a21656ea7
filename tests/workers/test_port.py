"""A port is chosen, found in use, and kept for those who are to listen on it."""

import socket

import pytest

from longtide_server.errors import InvalidInput
from longtide_server.workers.port import ReservedPort


def listening(port, *options, host="127.0.0.1"):
    made = socket.socket()
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.bind((host, port))
    made.listen()
    return made


def test_a_free_port_is_picked_and_nobody_else_gets_it():
    with ReservedPort("127.0.0.1", 0) as reserved:
        assert reserved.port > 0
        for options in ((), (socket.SO_REUSEADDR,)):
            with pytest.raises(OSError, match="in use"):
                listening(reserved.port, *options)
        with pytest.raises(InvalidInput, match=f"127.0.0.1:{reserved.port} cannot be listened on"):
            ReservedPort("127.0.0.1", reserved.port)


def test_several_listen_on_it_and_it_is_kept_when_they_have_gone():
    with ReservedPort("127.0.0.1", 0) as reserved:
        for _ in range(2):
            with listening(reserved.port, socket.SO_REUSEPORT), listening(reserved.port, socket.SO_REUSEPORT):
                pass
            with pytest.raises(OSError, match="in use"):
                listening(reserved.port, socket.SO_REUSEADDR)
    with listening(reserved.port, socket.SO_REUSEADDR):
        pass


def test_only_those_who_listen_are_connected():
    with ReservedPort("127.0.0.1", 0) as reserved, listening(reserved.port, socket.SO_REUSEPORT) as worker:
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", reserved.port), timeout=5.0):
                worker.accept()[0].close()


@pytest.mark.parametrize("options", [(), (socket.SO_REUSEPORT,)])
def test_a_port_in_use_is_named(options):
    with listening(0, *options) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(InvalidInput, match=f"{address} cannot be listened on; is something else there"):
            ReservedPort("127.0.0.1", other.getsockname()[1])


@pytest.mark.parametrize("host", ["localhost", "0.0.0.0"])
def test_hosts_may_have_several_addresses(host):
    with ReservedPort(host, 0) as reserved:
        assert reserved.port > 0


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_none_of_ours_is_named(host):
    with pytest.raises(InvalidInput, match="cannot be listened on"):
        ReservedPort(host, 0)
