"""Folding: the parent's side. A failure of the child becomes a SnapshotError."""

import asyncio
import re
from pathlib import Path

from agent.adapters.child_process import STALL_SECONDS, CommandFailed, Exchange, NoAnswer, checked, end
from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.child_process import counts
from agent.adapters.duckdb.child_protocol import FOLD
from agent.adapters.duckdb.source import HEADER_BYTES, Header
from agent.domain.databases import reader_of
from agent.domain.errors import SnapshotError, StagingFull, WireError
from agent.domain.manifest import Rows
from agent.domain.memories import Json

_INDEX = re.compile(r"unknown index type '(\w+)'", re.IGNORECASE)
_EXTENSION = re.compile(r"in the (\w+) extension", re.IGNORECASE)
_INDEXES = {"HNSW": "vss", "RTREE": "spatial"}
"""Index type -> the extension that provides it."""

_FULL = re.compile(r"no space left|disk quota|file too large|out of disk", re.IGNORECASE)


class DuckdbWalMerger:
    """Folds databases, each in a new child process."""

    def __init__(self, *, timeout_seconds: float = 3600.0, stall_seconds: float = STALL_SECONDS) -> None:
        self._timeout_seconds, self._stall_seconds = timeout_seconds, stall_seconds

    async def fold(self, main: Path) -> Rows:
        """Merge a main file and its sidecars into one file; return the rows per table.

        The file keeps the storage version of its writer. Raises SnapshotError, whose hint names what opens the files;
        the files may be modified then. Raises StagingFull if the disk is full.
        """
        before = await asyncio.to_thread(_version, main)
        opens = f"{reader_of(before)} opens the files together"
        try:
            child = await child_process.start(main)
        except OSError as error:
            raise SnapshotError(f"DuckDB could not be started: {error.strerror}", transient=True) from error
        try:
            found = await Exchange(child, self._timeout_seconds, self._stall_seconds).ask(FOLD, "folded", _read)
        except NoAnswer as error:
            reason = f"crashed on it ({error.reason})" if error.crashed else error.reason
            raise SnapshotError(f"DuckDB {reason}", hint=opens) from error
        except CommandFailed as error:
            raise SnapshotError(f"DuckDB cannot read it: {error}", hint=opens) from error
        finally:
            await end(child)
        if isinstance(found, str):
            if _FULL.search(found):
                raise StagingFull(f"DuckDB cannot merge them: {found}")
            raise SnapshotError(f"DuckDB cannot merge them: {found}", hint=_open_hint(found, before))
        if await asyncio.to_thread(_version, main) != before:
            raise SnapshotError("folding changed its storage version", hint=opens)
        return found

    @staticmethod
    def storage_version(main: Path) -> int | None:
        """Return the storage version in a main file's header, None if it has no valid header. Blocks."""
        try:
            return _version(main)
        except SnapshotError:
            return None


def _read(answer: Json) -> dict[str, int] | str:
    """Return the rows per table, or the reason why the files cannot be folded."""
    found = checked(answer, dict)
    return checked(found["error"], str) if "error" in found else counts(found["rows"])


def _open_hint(reason: str, version: int) -> str:
    """Return which DuckDB, with which extension, opens files that could not be folded."""
    index, extension = _INDEX.search(reason), _EXTENSION.search(reason)
    if index:
        needed = _INDEXES.get(index[1].upper(), f"for index type {index[1]}")
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
