"""Parsing the 12,288 header bytes of a DuckDB file."""

import struct
from dataclasses import replace

import pytest

from agent.adapters.duckdb.source import HEADER_BYTES, Header
from agent.domain.errors import WireError
from agent.domain.upload_parts import Part
from tests.support.values import parts


def header(first=(1, 262_144), second=(0, 262_144), *, version=64, magic=b"DUCK"):
    """Header bytes with two database headers of (iteration, block size)."""
    data = bytearray(HEADER_BYTES)
    struct.pack_into("<Q4sQ", data, 0, 0xFEED, magic, version)
    for at, (iteration, block_bytes) in ((4096, first), (8192, second)):
        struct.pack_into("<7Q", data, at, 0xC0FFEE, iteration, 7, 8, 19, block_bytes, 2048)
    return bytes(data)


@pytest.mark.parametrize(("first", "second", "active"), [(4, 5, 5), (6, 5, 6), (0, 0, 0)])
def test_the_database_header_with_the_higher_iteration_is_the_active_one(first, second, active):
    parsed = Header.parse(header((first, 262_144), (second, 262_144)))
    assert (parsed.iteration, parsed.version) == (active, 64)


@pytest.mark.parametrize("block_bytes", [16_384, 262_144])
def test_block_sizes_that_duckdb_offers_are_known(block_bytes):
    assert Header.parse(header((3, block_bytes), (2, block_bytes))).iteration == 3


@pytest.mark.parametrize("block_bytes", [0, 1, 262_143, 2**63, 0xDEADBEEF])
def test_an_unknown_layout_has_no_iteration_and_is_not_an_error(block_bytes):
    """The database headers of an encrypted file are random bytes. It can be copied all the same."""
    assert Header.parse(header((3, block_bytes), (2, 262_144), version=999)) == Header(version=999, iteration=None)


@pytest.mark.parametrize("iteration", [2**63, 2**64 - 1])
def test_an_iteration_that_no_manifest_can_have_is_unknown(iteration):
    assert Header.parse(header(second=(iteration, 262_144))).iteration is None


def test_the_largest_iteration_and_storage_version_that_are_read_are_valid_in_a_manifest():
    found = Header.parse(header((2**63 - 1, 262_144), version=2**63 - 1))
    part = replace(parts("reflection")[0], header_iteration=found.iteration, storage_version=found.version)
    assert Part.from_document(part.to_document()) == part


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes"),
        (header()[:-1], "has 12,287 bytes"),
        (header(magic=b"KCUD"), "does not start with a DuckDB header"),
        (b"SQLite format 3\0" * 1000, "does not start with a DuckDB header"),
        (header(version=2**63), "no DuckDB has its storage version"),
    ],
)
def test_bytes_that_are_not_a_duckdb_header_are_rejected_with_the_reason(data, message):
    with pytest.raises(WireError, match=message):
        Header.parse(data)
