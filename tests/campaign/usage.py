"""What a process uses: its open descriptors, and its own memory."""

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

_MAY_BE_MORE = Counter({"socket": 4, "anon_inode:inotify": 1, "anon_inode:[eventpoll]": 1, "anon_inode:[eventfd]": 1})
"""How many more than at first may be open: idle connections to the target; a watch that had not begun at first."""


@dataclass(frozen=True)
class Usage:
    """`descriptors` by kind, files by path; `memory` in bytes, without what it shares with other processes."""

    pid: int
    descriptors: Counter[str]
    memory: int

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid, descriptors(pid), psutil.Process(pid).memory_full_info().uss)

    def more_descriptors(self) -> list[str]:
        """Return the descriptors that the process has opened since, with their number."""
        more = descriptors(self.pid) - self.descriptors - _MAY_BE_MORE
        return [f"{count} {kind}" for kind, count in more.items()]


def descriptors(pid: int) -> Counter[str]:
    found = Counter[str]()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[re.sub(r":\[\d+\]", "", str(descriptor.readlink()))] += 1
    return found
