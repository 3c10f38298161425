"""The user at the other end of a TCP connection, as the kernel answers, from its tables, and from tables like them."""

import errno
import os
import socket
import sys

import pytest

from agent.entrypoints.control_api import tcp_peer
from agent.entrypoints.control_api.tcp_peer import is_of_this_user

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not report the user")

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
ROW = "   {number}: {ends} {state} 00000000:00000000 00:00000000 00000000 {uid:5}        0 1234 1 ffff8880 20 4 30\n"
CLIENT, SERVER = ("127.0.0.1", 50_000), ("127.0.0.1", 8787)
V4 = "0100007F:C350 0100007F:2253"
V4_BACK = "0100007F:2253 0100007F:C350"
MAPPED = "0000000000000000FFFF00000100007F:C350 0000000000000000FFFF00000100007F:2253"


def not_supported(*_):
    raise OSError(errno.EPROTONOSUPPORT, "not supported")


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(tcp_peer, "PROC_NET", tmp_path)
    monkeypatch.setattr(tcp_peer, "_uid_from_kernel", not_supported)

    def write(name, *rows, state="01"):
        lines = [ROW.format(number=number, ends=ends, uid=uid, state=state) for number, (ends, uid) in enumerate(rows)]
        (tmp_path / name).write_text(HEAD + "".join(lines))

    return write


@pytest.mark.parametrize("source", ["kernel", "tables"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_of_this_process_is_of_this_user(family, source, monkeypatch):
    """A browser may connect through an IPv6 socket."""
    if source == "tables":
        monkeypatch.setattr(tcp_peer, "_uid_from_kernel", not_supported)
    else:
        monkeypatch.setattr(tcp_peer, "_uid_from_tables", lambda *_: pytest.fail("the kernel was not asked"))
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(family) as client:
        address = server.getsockname()
        client.connect(address if family == socket.AF_INET else (f"::ffff:{address[0]}", address[1]))
        connected, peer = server.accept()
        with connected:
            assert is_of_this_user(peer, address)
            monkeypatch.setattr(os, "geteuid", lambda: 4711)
            assert not is_of_this_user(peer, address)


@pytest.mark.parametrize("source", ["kernel", "tables"])
def test_a_client_that_has_closed_is_no_user_even_if_another_socket_listens_at_its_port(source, monkeypatch):
    if source == "tables":
        monkeypatch.setattr(tcp_peer, "_uid_from_kernel", not_supported)
    with socket.create_server(("127.0.0.1", 0)) as other, socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        connected, peer = server.accept()
        with connected:
            client.close()
            for closed in (peer, other.getsockname()):
                with pytest.raises(ConnectionResetError):
                    is_of_this_user(closed, server.getsockname())


@pytest.mark.skipif(sys.byteorder != "little", reason="the tables are of a little-endian machine")
@pytest.mark.parametrize(("name", "ends"), [("tcp", V4), ("tcp6", MAPPED)])
@pytest.mark.parametrize("uid", [0, 1])
def test_the_user_is_that_of_the_clients_end(tables, name, ends, uid):
    """The server's end of the same connection, in the same table, is the agent's own."""
    mine = os.geteuid()
    tables("tcp", (V4_BACK, mine), ("0100007F:C351 0100007F:2253", mine + 7))
    rows = [(V4_BACK, mine), (ends, mine + uid), (ends.replace("C350", "C351"), mine + 7)]
    tables(name, *rows)
    assert is_of_this_user(CLIENT, SERVER) == (uid == 0)


def test_if_the_tables_cannot_be_read_a_client_is_not_of_this_user(tables):
    assert not is_of_this_user(CLIENT, SERVER)


@pytest.mark.parametrize(("ends", "state"), [(V4_BACK, "01"), (V4, "06")], ids=["in no table", "not established"])
def test_a_connection_without_an_established_end_has_ended(tables, ends, state):
    """A socket in TIME_WAIT has the user ID 0."""
    tables("tcp", (ends, os.geteuid()), state=state)
    with pytest.raises(ConnectionResetError):
        is_of_this_user(CLIENT, SERVER)
