"""Pairs of files of which one is made from the other, and patches by hand."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from backports import zstd

BLOCK = 2**18


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def record(document: object) -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(4, "little") + text


def header(reference_size: int, size: int) -> bytes:
    return b"AKPATCH1" + record({"reference": reference_size, "size": size})


def step(sources: object, targets: object, frame: bytes = b"") -> bytes:
    return record({"from": sources, "to": targets, "frame": len(frame)}) + frame


def frame(content: bytes, prefix: bytes = b"") -> bytes:
    dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
    return zstd.compress(content, zstd_dict=dictionary)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def sizes_of(patches: Sequence[Path], last: int) -> list[int]:
    """Return the sizes of the files that patches make; `last` for the last one, and for patches without a header."""
    return [*(_size_of(patch.read_bytes(), last) for patch in patches[:-1]), last]


def _size_of(patch: bytes, otherwise: int) -> int:
    try:
        return int(json.loads(patch[12 : 12 + int.from_bytes(patch[8:12], "little")])["size"])
    except (ValueError, KeyError, TypeError):
        return otherwise
