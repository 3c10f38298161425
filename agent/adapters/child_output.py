"""Answers of a child process to its parent, and the limits of a child. A child imports little.

The parent writes commands, one per line. The child answers each with a frame: four bytes of length, then a JSON object
of that length; {"error": text} means that the command failed.

Until it answers, the child sends an empty frame (a heartbeat) every BEAT_SECONDS, unless it has used no processor time
since the last one: a child that is stopped or hangs is silent.
"""

import json
import resource
import struct
import sys
import threading
import time

BEAT_SECONDS = 1.0

LEAST_WORK_SECONDS = 0.001
"""Minimum processor time between two heartbeats."""

_LENGTH = struct.Struct(">I")
HEAD_BYTES = _LENGTH.size
BEAT = _LENGTH.pack(0)

_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def framed(body: bytes) -> bytes:
    """Return the bytes as a frame."""
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return the number of bytes that follow the head of a frame."""
    length: int = _LENGTH.unpack(head)[0]
    return length


class Output:
    """Writes to the parent: answers, and heartbeats while a command is unanswered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered = 0
        self._busy = threading.Event()

    def command_received(self) -> None:
        with self._lock:
            self._unanswered += 1
            self._busy.set()

    def answer(self, document: object) -> None:
        with self._lock:
            self._unanswered -= 1
            if not self._unanswered:
                self._busy.clear()
            self._write(framed(_encoded(document).encode()))

    def beat(self) -> None:
        """Send heartbeats while the process makes progress: work that hangs uses no processor time."""
        used = 0.0
        while True:
            self._busy.wait()  # an idle child does not wake up
            time.sleep(BEAT_SECONDS)
            with self._lock:
                now = time.process_time() - time.thread_time()  # without the time of this thread
                if self._unanswered and now - used >= LEAST_WORK_SECONDS:
                    self._write(BEAT)
                    used = now

    @staticmethod
    def _write(data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def limit_resources(address_space_bytes: int) -> None:
    """Limit the address space as a backstop, and disable core dumps, which would hold memories."""
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, address_space_bytes)):
        _, hard = resource.getrlimit(kind)
        wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (wanted, hard))
        except (OSError, ValueError):
            continue  # macOS refuses some limits: the limits of the work itself still apply
