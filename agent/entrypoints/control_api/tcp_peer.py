"""The user of the process at the other end of a TCP connection on this machine.

The kernel is asked for the one connection (sock_diag(7)). A kernel without that has tables of all connections in
`/proc/self/net`; reading them takes 10 ms and more.
"""

import errno
import os
import socket
import struct
import sys
from pathlib import Path

PROC_NET = Path("/proc/self/net")

_SYSTEM: str = sys.platform

_AF_NETLINK, _NETLINK_SOCK_DIAG = 16, 4
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, sender."""
_SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _NLMSG_ERROR = 20, 1, 2
_REQUEST = struct.Struct("=BBBxI")
"""The first fields of struct inet_diag_req_v2: family, protocol, extensions, states."""
_ADDRESSES = struct.Struct(">HH4s12x4s12x")
"""The first fields of struct inet_diag_sockid: ports and addresses. Any interface and any cookie follow."""
_ANY = struct.pack("=III", 0, 0xFFFF_FFFF, 0xFFFF_FFFF)
_ANSWER = struct.Struct("=xB2xHH")
"""The first fields of struct inet_diag_msg: state and ports; the ports are in network byte order."""
_UID_AT = 64
"""Offset of the user ID in struct inet_diag_msg."""
_ALL_STATES, _ESTABLISHED = 0xFFFF_FFFF, 1
_MAX_ANSWER_BYTES = 8192
_SECONDS = 1.0

_MAPPED = bytes(10) + b"\xff\xff"
"""Prefix of an IPv4 address in IPv6: a browser may connect to 127.0.0.1 through such a socket."""
_UID_COLUMN = 7

Address = tuple[str, int]


def is_of_this_user(client: Address, server: Address) -> bool:
    """Return whether the client's end of an IPv4 connection belongs to this user. Blocks briefly.

    True on systems other than Linux, which do not tell. False if Linux does not tell. Raises ConnectionResetError if
    the client's end is closed.
    """
    if _SYSTEM != "linux":
        return True
    try:
        uid = _uid_from_kernel(client, server)
    except OSError:  # the kernel has no sock_diag, or a sandbox forbids it
        uid = _uid_from_tables(client, server)
    if uid is None:
        raise ConnectionResetError("the client has disconnected")
    return uid == os.geteuid()


def _uid_from_kernel(client: Address, server: Address) -> int | None:
    """Return the user ID of the client's end, None if there is no such connection. Raises OSError."""
    ends = _ADDRESSES.pack(client[1], server[1], socket.inet_aton(client[0]), socket.inet_aton(server[0]))
    request = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ALL_STATES) + ends + _ANY
    length = _HEADER.size + len(request)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    with socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_SECONDS)
        kernel.sendto(header + request, (0, 0))
        answer = kernel.recv(_MAX_ANSWER_BYTES)
    if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code == -errno.ENOENT:
            return None
        raise OSError(-code, os.strerror(-code))
    state, *ports = _ANSWER.unpack_from(answer, _HEADER.size)
    if state != _ESTABLISHED or ports != [socket.htons(client[1]), socket.htons(server[1])]:
        return None  # a socket that listens at the client's port
    return int(struct.unpack_from("=I", answer, _HEADER.size + _UID_AT)[0])


def _uid_from_tables(client: Address, server: Address) -> int | None:
    """Return the user ID of the client's end; None if no table has the connection, -1 if none can be read."""
    without_end: int | None = -1
    for name, prefix in (("tcp", b""), ("tcp6", _MAPPED)):
        ends = f": {_in_table(prefix, client)} {_in_table(prefix, server)} {_ESTABLISHED:02X} "
        try:
            rows = (PROC_NET / name).read_text("ascii")
        except OSError:  # without IPv6 there is no tcp6
            continue
        without_end = None
        if (found := rows.find(ends)) >= 0:
            row = rows[rows.rfind("\n", 0, found) + 1 : rows.find("\n", found)]
            return int(row.split()[_UID_COLUMN])
    return without_end


def _in_table(prefix: bytes, address: Address) -> str:
    """Return an address as the tables have it: words in the byte order of the machine, in hexadecimal digits."""
    packed = prefix + socket.inet_aton(address[0])
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    return f"{''.join(f'{word:08X}' for word in words)}:{address[1]:04X}"
