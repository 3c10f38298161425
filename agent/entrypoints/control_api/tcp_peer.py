"""The user of the process at the other end of a TCP connection on this machine."""

import os
import socket
import sys
from pathlib import Path

PROC_NET = Path("/proc/self/net")

_SYSTEM: str = sys.platform
_MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4 address in IPv6: a browser may connect to 127.0.0.1 through such a socket."""

_UID = 7
"""Column of the user ID."""


def is_of_this_user(client: tuple[str, int], server: tuple[str, int]) -> bool:
    """Return whether the client's end of an IPv4 connection belongs to this user. Blocks briefly.

    True on systems other than Linux, which do not tell. False if the connection has ended.
    """
    if _SYSTEM != "linux":
        return True
    wanted = f"{_address(*client)} {_address(*server)}", f"{_mapped(*client)} {_mapped(*server)}"
    for name, ends in zip(("tcp", "tcp6"), wanted, strict=True):
        uid = _uid_of(PROC_NET / name, ends)
        if uid is not None:
            return uid == os.geteuid()
    return False


def _uid_of(table: Path, ends: str) -> int | None:
    """Return the user ID in the row of a connection, None if the table does not have it."""
    try:
        rows = table.read_text("ascii")
    except OSError:  # without IPv6 there is no tcp6
        return None
    found = rows.find(f": {ends} ")
    if found < 0:
        return None
    row = rows[rows.rfind("\n", 0, found) + 1 : rows.find("\n", found)]
    return int(row.split()[_UID])


def _address(host: str, port: int) -> str:
    """Return an address as the kernel writes it: words in the byte order of the machine, in hexadecimal digits."""
    return _hex(socket.inet_aton(host), port)


def _mapped(host: str, port: int) -> str:
    return _hex(_MAPPED + socket.inet_aton(host), port)


def _hex(address: bytes, port: int) -> str:
    words = (address[at : at + 4] for at in range(0, len(address), 4))
    return f"{''.join(f'{int.from_bytes(word, sys.byteorder):08X}' for word in words)}:{port:04X}"
