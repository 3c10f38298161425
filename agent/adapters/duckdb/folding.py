"""Folding: the parent's side. Whatever happens to the child becomes an error."""

import asyncio
import re
from pathlib import Path
from typing import cast

from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.child_process import STALL_SECONDS, Exchange, Unanswered, Unreadable
from agent.adapters.duckdb.frames import FOLD
from agent.adapters.duckdb.source import HEADER_BYTES, Header
from agent.domain.databases import reader_of
from agent.domain.errors import SnapshotError, StagingFull, WireError
from agent.domain.manifest import Rows
from agent.domain.memories import Json

_INDEX = re.compile(r"unknown index type '(\w+)'", re.IGNORECASE)
_EXTENSION = re.compile(r"in the (\w+) extension", re.IGNORECASE)
_INDEXES = {"HNSW": "vss", "RTREE": "spatial"}
"""The extension that brings an index type."""

_FULL = re.compile(r"no space left|disk quota|file too large|out of disk", re.IGNORECASE)


class DuckdbFolder:
    """Folds in a child process of its own."""

    def __init__(self, *, timeout_seconds: float = 3600.0, stall_seconds: float = STALL_SECONDS) -> None:
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds

    async def fold(self, main: Path) -> Rows:
        """Make one file of a main file and the sidecars beside it; return the rows per table.

        The file keeps the storage version of its writer. Raises SnapshotError, whose hint says what opens the files;
        then they may be neither what they were nor what they should be. StagingFull where there is no room.
        """
        before = await asyncio.to_thread(_version, main)
        opens = f"{reader_of(before)} opens the files together"
        try:
            child = await child_process.start(main)
        except OSError as error:
            raise SnapshotError(f"the engine could not be started: {error.strerror}", transient=True) from error
        try:
            answer = await Exchange(child, self._timeout_seconds, self._stall_seconds).ask(FOLD, "folded")
        except Unanswered as error:
            what = f"crashed on it ({error.what})" if error.crashed else error.what
            raise SnapshotError(f"the engine {what}", hint=opens) from error
        except Unreadable as error:
            raise SnapshotError(f"the engine cannot read it: {error}", hint=opens) from error
        finally:
            await child_process.end(child)
        found = cast(dict[str, Json], answer)
        if "error" in found:
            why = str(found["error"])
            if _FULL.search(why):
                raise StagingFull(f"the engine cannot fold it: {why}")
            raise SnapshotError(f"the engine cannot fold it: {why}", hint=_what_opens(why, before))
        if await asyncio.to_thread(_version, main) != before:
            raise SnapshotError("the engine gave it another storage version", hint=opens)
        return cast(dict[str, int], found["rows"])

    @staticmethod
    def storage_version(main: Path) -> int | None:
        """Return the storage version that a main file's header tells, None where it has no such header. Blocks."""
        try:
            return _version(main)
        except SnapshotError:
            return None


def _what_opens(why: str, version: int) -> str:
    """Return which DuckDB, with which extension, opens what could not be folded."""
    index, extension = _INDEX.search(why), _EXTENSION.search(why)
    if index:
        needed = _INDEXES.get(index[1].upper(), f"that brings index type {index[1]}")
    elif extension:
        needed = extension[1]
    else:
        return f"{reader_of(version)} opens the files together"
    return f"Session-Buddy opens the files together, as does {reader_of(version)} with its extension {needed}"


def _version(main: Path) -> int:
    try:
        with main.open("rb") as file:
            return Header.parse(file.read(HEADER_BYTES)).version
    except WireError as error:
        raise SnapshotError(f"{main.name} {error.message}") from error
    except OSError as error:
        raise SnapshotError(f"{main.name} cannot be read: {error.strerror}") from error
