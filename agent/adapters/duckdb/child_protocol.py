"""The protocol between a child and its parent.

The parent writes commands, one per line. The child answers each with a frame: four bytes of length, then a JSON object
of that length.

    verify          {"verdict": {"rows": {table: count}, "unread": {table or column: reason}}},
                    or {"verdict": {"error": text, "damaged": bool}}
    open "graph"    {"tables": n}                   opens the copy for the three commands that follow
    begin           {"started": true}               the next page is the first
    page            {"page": [[kind, ID, digest, embedded, bytes], ...]}, which may be empty; null is the end, and
                    so is an error that names the tables DuckDB cannot read: all other rows were sent before
    read [p, ...]   {"rows": [[text, embedding, time, metadata], ...]}   of the last page, by position
    fold            {"folded": {"rows": {table: count}}}, or {"folded": {"error": text}}
    (any)           {"error": text}                 and the child exits

Until it answers, the child sends an empty frame (a heartbeat) every BEAT_SECONDS, unless it has used no processor time
since the last one: a child that is stopped or hangs is silent.
"""

import struct

VERIFY, OPEN, BEGIN, PAGE, READ, FOLD = b"verify", b"open", b"begin", b"page", b"read", b"fold"

PAGE_ROWS = 500
"""Maximum number of rows in a page."""

BEAT_SECONDS = 1.0

_LENGTH = struct.Struct(">I")
HEAD_BYTES = _LENGTH.size
BEAT = _LENGTH.pack(0)


def framed(body: bytes) -> bytes:
    """Return the bytes as a frame."""
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return the number of bytes that follow the head of a frame."""
    length: int = _LENGTH.unpack(head)[0]
    return length


def scratch_name(pid: int) -> str:
    """Return the name of DuckDB's temporary directory, next to the copy."""
    return f"engine-{pid}.tmp"
