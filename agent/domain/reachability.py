"""Decides whether a failed connection attempt proves that a server is unreachable.

Only then is a method skipped. A timeout or a temporary failure of name resolution proves nothing: the method is tried,
and its error says what is wrong.
"""

import errno
import socket

_UNREACHABLE = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
    }
)
_NO_SUCH_NAME = frozenset(
    code for name in ("EAI_NONAME", "EAI_NODATA") if (code := getattr(socket, name, None)) is not None
)
"""Without EAI_AGAIN, which means that the name server does not answer."""

_MAX_DEPTH = 8


def is_unreachable(error: BaseException, *, depth: int = _MAX_DEPTH) -> bool:
    """Return whether the error or its cause is a refused connection, a missing route or a name that does not exist.

    For a group, every error must be one of these: if one address refuses and another does not answer, the server may be
    reachable.
    """
    if isinstance(error, socket.gaierror):
        return error.errno in _NO_SUCH_NAME
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(is_unreachable(one, depth=depth - 1) for one in error.exceptions)
    cause = error.__cause__ or error.__context__
    return cause is not None and depth > 0 and is_unreachable(cause, depth=depth - 1)
