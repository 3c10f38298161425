"""Requests over a Unix socket: paths of any length, and servers with invalid or no responses."""

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from agent.adapters.unix_http import CONTROL_SOCKET, LONGEST_ADDRESS_BYTES, is_own_socket, request, socket_address

HEAD = b"HTTP/1.1 200 OK\r\nServer: akosha-agent/1.2\r\nContent-Length: 4\r\n\r\n"


@contextlib.contextmanager
def answering(path, *pieces, pause=0.0):
    """A server that answers each connection with these pieces."""
    with socket_address(path) as address, socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        stop = threading.Event()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(65_536)
                        for piece in pieces:
                            connection.sendall(piece)
                            stop.wait(pause)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def get(path, **more):
    return request(path, "GET", "/", **({"seconds": 30, "max_bytes": 100} | more))


def test_a_response_has_status_headers_and_body(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with answering(tmp_path / CONTROL_SOCKET, HEAD, b"body"):
        response = get(tmp_path / CONTROL_SOCKET)
    assert (response.status, response.headers["server"], response.body) == (200, "akosha-agent/1.2", b"body")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reach a socket through a descriptor")
def test_a_path_longer_than_an_address_is_reached(tmp_path):
    path = tmp_path / ("d" * 100) / CONTROL_SOCKET
    path.parent.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with answering(path, HEAD, b"body"):
        assert is_own_socket(path)
        assert get(path).status == 200
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_longest_socket_address_is_usable_and_a_longer_one_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for length, works in ((LONGEST_ADDRESS_BYTES, True), (LONGEST_ADDRESS_BYTES + 1, False)):
        with socket.socket(socket.AF_UNIX) as server:
            if works:
                server.bind("s" * length)
            else:
                with pytest.raises(OSError, match="too long"):
                    server.bind("s" * length)


@pytest.mark.parametrize(
    ("pieces", "limits", "error", "message"),
    [
        ([b"SSH-2.0-no http\r\n\r\n"], {}, OSError, "not HTTP"),
        ([b""], {}, OSError, "not HTTP"),
        ([HEAD, b"body"], {"max_bytes": 3}, OSError, "larger than 3 bytes"),
        ([HEAD], {"seconds": 0.1, "pause": 30}, TimeoutError, "timed out"),
        ([HEAD, b"b", b"o", b"d", b"y"], {"seconds": 0.1, "pause": 0.08}, TimeoutError, "within"),
    ],
    ids=["no HTTP", "nothing", "too large", "silent", "dribbling"],
)
def test_an_invalid_or_late_response_is_an_error(tmp_path, pieces, limits, error, message):
    pause = limits.pop("pause", 0.0)
    with answering(tmp_path / CONTROL_SOCKET, *pieces, pause=pause), pytest.raises(error, match=message):
        get(tmp_path / CONTROL_SOCKET, **limits)


def test_only_a_socket_of_this_user_is_accepted(tmp_path, monkeypatch):
    path = tmp_path / CONTROL_SOCKET
    assert not is_own_socket(path)
    path.touch()
    assert not is_own_socket(path)
    path.unlink()
    with answering(path):
        assert is_own_socket(path)
        (tmp_path / "link").symlink_to(path)
        assert not is_own_socket(tmp_path / "link")
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        assert not is_own_socket(path)
