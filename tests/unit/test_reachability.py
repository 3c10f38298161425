"""A target is unreachable only after a refusal, with no route, or if its name does not exist."""

import errno
import socket

import pytest

from agent.api import reachability
from agent.domain.errors import SinkError
from agent.domain.reachability import is_unreachable

REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
SILENT = TimeoutError(errno.ETIMEDOUT, "Connection timed out")


def caused_by(cause: BaseException) -> Exception:
    error = SinkError("http://akosha: no connection")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "definite"),
    [
        (REFUSED, True),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), False),
        (socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"), False),
        (SILENT, False),
        (TimeoutError(), False),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), False),
        (ValueError("anything else"), False),
        (ExceptionGroup("each address", [REFUSED, OSError(errno.EHOSTUNREACH, "No route to host")]), True),
        (ExceptionGroup("each address", [REFUSED, SILENT]), False),
        (caused_by(caused_by(REFUSED)), True),
        (caused_by(caused_by(SILENT)), False),
        (caused_by(ExceptionGroup("each address", [REFUSED, REFUSED])), True),
    ],
    ids=repr,
)
def test_only_a_definite_error_proves_that_a_target_is_unreachable(error, definite):
    assert is_unreachable(error) is definite


@pytest.mark.parametrize(
    ("code", "available"),
    [(socket.EAI_NONAME, False), (socket.EAI_AGAIN, True)],
    ids=["no such name", "name server away"],
)
def test_the_python_api_distinguishes_a_missing_name_from_a_failing_name_server(code, available, monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(code, "from the name server")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    assert (reachability.connection_refusal("https://store.example.com", "auto") == "") is available
    assert (reachability.health_failure("https://akosha.example.com/mcp") == "") is available
