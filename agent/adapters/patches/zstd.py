"""Zstandard frames that are compressed with a reference. Memory is bounded by the limits of a step."""

import sys
from collections.abc import Iterable, Iterator

from agent.domain.errors import WireError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_NO_MEMORY = "Allocation error"
"""In the message of ZSTD_error_memory_allocation."""

Prefix = tuple[zstd.ZstdDict, int]
"""Bytes that a frame refers to."""

MOST_STEP_BYTES = 32 * 2**20
"""Maximum number of bytes that a step makes, and of those of the reference that it uses."""

PIECE_BYTES = 2**18

LEVEL = 1
"""Higher levels are slower and save 1 to 2 %: nearly all bytes are long matches, which every level finds."""

LEAST_PREFIX_BYTES = 8
"""zstd's minimum."""

_COMPRESSION: dict[int, int] = {
    zstd.CompressionParameter.compression_level: LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
    zstd.CompressionParameter.enable_long_distance_matching: 1,
    zstd.CompressionParameter.window_log: 27,  # reference and content together: zstd reduces it to what they need
}
_DECOMPRESSION: dict[int, int] = {zstd.DecompressionParameter.window_log_max: (MOST_STEP_BYTES - 1).bit_length()}


def prefix_of(content: bytearray) -> Prefix | None:
    """Return a prefix with a copy of the content, None if it is empty."""
    return zstd.ZstdDict(content, is_raw=True).as_prefix if content else None


def compress(prefix: Prefix | None, pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield a frame with `size` bytes of content."""
    compressor = zstd.ZstdCompressor(options=_COMPRESSION, zstd_dict=prefix)
    compressor.set_pledged_input_size(size)
    for piece in pieces:
        yield compressor.compress(piece)
    yield compressor.flush()


def decompress(prefix: Prefix | None, pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the content of a frame, which must have `size` bytes, in small pieces. Raises WireError, MemoryError."""
    decompressor = zstd.ZstdDecompressor(zstd_dict=prefix, options=_DECOMPRESSION)
    left = size
    try:
        for piece in pieces:
            if decompressor.eof:
                raise WireError("there are bytes after a frame")
            for content in _contents(decompressor, piece):
                left -= len(content)
                if left < 0:
                    raise WireError("a frame contains more bytes than its step makes")
                yield content
    except zstd.ZstdError as error:
        if _NO_MEMORY in str(error):  # says nothing about the frame
            raise MemoryError(str(error)) from error
        raise WireError(f"a frame is not valid: {error}") from error
    if left or not decompressor.eof or decompressor.unused_data:
        raise WireError("a frame does not end with its step")


def _contents(decompressor: zstd.ZstdDecompressor, piece: bytes) -> Iterator[bytes]:
    yield decompressor.decompress(piece, PIECE_BYTES)
    while not (decompressor.needs_input or decompressor.eof):
        yield decompressor.decompress(b"", PIECE_BYTES)
