"""What a child and its parent agree on.

The parent writes commands, a line each; the child answers every one with a frame: four bytes of length, then so much
JSON, an object.

    verify          {"verdict": {"rows": {table: count}, "unread": {table or column: why}}},
                    or {"verdict": {"error": text, "damaged": bool}}
    open "graph"    {"tables": n}                   the copy is open from now on; what follows is of it
    begin           {"begun": true}                 the next page is the first
    page            {"page": [[kind, id, digest, embedded, bytes], ...]}, which may be empty; null is the end, and
                    so is an error that names the tables this engine cannot read: all other rows have come by then
    read [p, ...]   {"rows": [[text, embedding, time, metadata], ...]}   of the page before, by position
    fold            {"folded": {"rows": {table: count}}}, or {"folded": {"error": text}}
    (any)           {"error": text}                 and the child ends

While it works at an answer, the child sends an empty frame every BEAT_SECONDS, unless it has used no processor time
since the last one: a child that is stopped or hangs is silent.
"""

import struct

VERIFY, OPEN, BEGIN, PAGE, READ, FOLD = b"verify", b"open", b"begin", b"page", b"read", b"fold"

PAGE_ROWS = 500
"""Rows of a page at most."""

BEAT_SECONDS = 1.0

_LENGTH = struct.Struct(">I")
HEAD_BYTES = _LENGTH.size
BEAT = _LENGTH.pack(0)


def framed(body: bytes) -> bytes:
    """Return the bytes as a frame."""
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return how many bytes follow a frame's first four."""
    length: int = _LENGTH.unpack(head)[0]
    return length


def scratch_name(pid: int) -> str:
    """Return the name of the folder, beside the copy, to which a child's engine swaps."""
    return f"engine-{pid}.tmp"
