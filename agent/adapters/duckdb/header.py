"""The first 12,288 bytes of a DuckDB file.

A main header (4096 bytes: checksum, `DUCK`, format version) is followed by two database headers of 4096 bytes each:
seven little-endian u64 - checksum, iteration, meta block, free list, block count, block size, vector size. A
checkpoint writes its blocks beside those in use and then overwrites the header with the lower iteration; the other one
is what the file holds until then.
"""

import struct
from dataclasses import dataclass
from typing import Self

from agent.domain.errors import WireError

HEADER_BYTES = 12_288

_MAGIC = b"DUCK"
_VERSION = struct.Struct("<Q")
_DATABASE_HEADER = struct.Struct("<7Q")
_MAGIC_AT, _VERSION_AT = 8, 12
_DATABASE_HEADERS_AT = (4096, 8192)
_BLOCK_BYTES = range(4096, 2**24 + 1)


@dataclass(frozen=True, slots=True)
class Header:
    """What the active header says: the format's version, and how many checkpoints there were.

    `iteration` is None where the layout is not the known one (an encrypted file, a format of the future). Such a file
    can be copied all the same: equal bytes are equal. The block count is of no use for judging a file's size: free
    blocks at the end are cut off after the header was written, so a healthy file may be shorter than it says.
    """

    version: int
    iteration: int | None

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return what the header bytes say. Raises WireError where they are not those of a DuckDB file."""
        if len(data) < HEADER_BYTES:
            raise WireError(f"has {len(data):,} bytes, a DuckDB header alone has {HEADER_BYTES:,}")
        if data[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
            raise WireError("does not begin as a DuckDB file does")
        (version,) = _VERSION.unpack_from(data, _VERSION_AT)
        headers = (_DATABASE_HEADER.unpack_from(data, at) for at in _DATABASE_HEADERS_AT)
        active = max(headers, key=lambda header: header[1])
        _checksum, iteration, _meta, _free, _count, block_bytes, _vector = active
        known = block_bytes in _BLOCK_BYTES and not block_bytes & (block_bytes - 1)
        return cls(version=version, iteration=iteration if known else None)
