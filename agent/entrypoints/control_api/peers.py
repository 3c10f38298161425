"""Who is at the other end of a Unix socket."""

import socket
import struct
import sys
from asyncio.trsock import TransportSocket

_SYSTEM: str = sys.platform

_LINUX_UCRED = struct.Struct("3i")
"""pid, uid, gid."""

_XUCRED = struct.Struct("=II")
"""What macOS's and BSD's `struct xucred` begins with: version, uid."""
_XUCRED_BYTES = 76
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


def peer_uid(connected: socket.socket | TransportSocket) -> int | None:
    """Return the user id of the process that connected; None where this system does not tell.

    Raises OSError where the peer is gone already.
    """
    if _SYSTEM == "linux":
        _, uid, _ = _LINUX_UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size))
        return int(uid)
    if _SYSTEM == "darwin":
        told = connected.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES)
        _, uid = _XUCRED.unpack_from(told)
        return int(uid)
    return None
