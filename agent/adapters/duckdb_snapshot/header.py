"""
The first 12,288 bytes of a DuckDB file.

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
    """
    What the active header says.

    `iteration` counts checkpoints; it and the block figures are None and 0 where the layout is not the known one (an
    encrypted file, a format of the future): such a file can be copied all the same, since equal bytes are equal.
    """

    version: int
    iteration: int | None
    block_count: int
    block_bytes: int

    @property
    def least_bytes(self) -> int:
        """Bytes that a file with this header has at least."""
        return HEADER_BYTES + self.block_count * self.block_bytes

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
        _checksum, iteration, _meta, _free, block_count, block_bytes, _vector = active
        if block_bytes not in _BLOCK_BYTES or block_bytes & (block_bytes - 1):
            return cls(version=version, iteration=None, block_count=0, block_bytes=0)
        return cls(version=version, iteration=iteration, block_count=block_count, block_bytes=block_bytes)
