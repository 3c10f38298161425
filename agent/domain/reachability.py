"""Whether a failed try to connect proves that nobody can be reached there.

A method is skipped for such a proof alone. A time-out, or a look-up that failed for the moment, proves nothing: the
method is tried, and its own error says what is wrong.
"""

import errno
import socket

_NOBODY = frozenset(
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
"""Not EAI_AGAIN: that is a name server that does not answer."""

_DEEPEST = 8


def is_unreachable(error: BaseException, *, depth: int = _DEEPEST) -> bool:
    """Say whether the error, or what caused it, is a refused connection, a missing route or a name that does not exist.

    Of a group, each must be: where one address refuses and another is silent, nobody knows.
    """
    if isinstance(error, socket.gaierror):
        return error.errno in _NO_SUCH_NAME
    if isinstance(error, OSError) and error.errno in _NOBODY:
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(is_unreachable(one, depth=depth - 1) for one in error.exceptions)
    cause = error.__cause__ or error.__context__
    return cause is not None and depth > 0 and is_unreachable(cause, depth=depth - 1)
