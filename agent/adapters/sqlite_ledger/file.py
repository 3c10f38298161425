"""The ledger's file: opens and checks it, and translates SQLite's errors to StateError."""

import itertools
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.adapters import fs
from agent.adapters.sqlite_ledger import schema
from agent.domain.errors import LedgerDamaged, StateError

BUSY_SECONDS = 10.0
"""How long a transaction waits for one of another process before it fails."""

WAL_KEPT_BYTES = 8 * 2**20
"""The size to which the -wal is truncated after a checkpoint: a first upload of a million memories makes it 100 MB."""

_MOVE_ASIDE = (
    "the next akosha-agent run or sync moves it aside (with its -wal and -shm) and creates a new one"
    " from the newest manifest in the bucket; only the history is lost"
)
_ASIDE = ".damaged-"
_PRIMARY_CODE = 0xFF


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the file; create it (mode 0600) if it is missing, and migrate its tables. Raises StateError."""
    with translated(path):
        _create_private(path)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        with _closed_on_error(connection):
            schema.check_not_newer(schema.version(connection))
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # On macOS, fsync alone leaves the bytes in the drive's cache; elsewhere these two have no effect.
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA checkpoint_fullfsync = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
            migrated_from = schema.migrate(connection)
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise LedgerDamaged(f"{path} is damaged: {verdict}", hint=_MOVE_ASIDE)
            if 0 < migrated_from < schema.ROW_SETS:
                _shrink(connection, path)
        return connection


def _shrink(connection: sqlite3.Connection, path: Path) -> None:
    """Give the pages of dropped tables back to the file system, if the disk has room for two copies of the file."""
    if shutil.disk_usage(path.parent).free > 3 * path.stat().st_size:
        with suppress(sqlite3.OperationalError):  # the disk is full after all, or another process writes
            connection.execute("VACUUM")


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the file while another process may write it. Raises StateError, also if the ledger does not exist yet."""
    no_ledger = StateError(f"there is no ledger yet at {path}", hint="akosha-agent run or sync creates it")
    with translated(path):
        if not path.is_file():
            raise no_ledger
        connection = _connect_for_reading(path)
        with _closed_on_error(connection):
            found = schema.version(connection)
            schema.check_not_newer(found)
            if found == 0:
                raise no_ledger
            if found < schema.READABLE:
                raise StateError(
                    f"{path} was written by an earlier version", hint="akosha-agent run or sync migrates it"
                )
            connection.execute("PRAGMA query_only = ON")
        return connection


def is_created(path: Path) -> bool:
    """Return whether the ledger exists; False while its writer is still creating it, True if it is damaged."""
    if not path.is_file():
        return False
    try:
        with closing(_connect_for_reading(path)) as connection:
            return schema.version(connection) > 0
    except sqlite3.Error:
        return True


def size_of(path: Path) -> int:
    """Return the size of the file with its -wal and -shm, in bytes."""
    total = 0
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with suppress(FileNotFoundError):
            total += path.with_name(name).stat().st_size
    return total


def identity(path: Path) -> tuple[int, int] | None:
    """Return the file's device and inode, None if it does not exist. Raises OSError."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def set_aside(path: Path, at: datetime) -> Path | None:
    """Rename a damaged file, with its -wal and -shm, to `{name}.damaged-{time}`, and return its new path.

    Return None if the main file does not exist. The main file is renamed first: SQLite ignores the -wal of a new, empty
    file. No process may have the file open for writing. Raises StateError.
    """
    with translated(path):
        stamp = f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        aside = path.with_name(f"{path.name}{_ASIDE}{stamp}")
        for number in itertools.count(1):
            if not aside.exists():
                break
            aside = path.with_name(f"{path.name}{_ASIDE}{stamp}-{number}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        return aside if aside.exists() else None


def damaged_ledgers(path: Path) -> list[Path]:
    """Return the damaged files that were renamed, oldest first, without their -wal and -shm."""
    candidates = path.parent.glob(f"{path.name}{_ASIDE}*")
    return sorted(each for each in candidates if not each.name.endswith(("-wal", "-shm")))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise errors of SQLite and of the operating system as StateError with a hint."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translation(path, error) from error
    except OSError as error:
        raise StateError(
            f"{path} cannot be used: {error.strerror}", hint="check the state directory and its owner"
        ) from error


def damaged(problem: str) -> LedgerDamaged:
    """Return the error for content that the ledger cannot have written."""
    return LedgerDamaged(f"the ledger is damaged: {problem}", hint=_MOVE_ASIDE)


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    """Connect read-only. If the writer has removed the -shm of a file in WAL mode, SQLite creates it again.

    If SQLite cannot create it, because the directory is not writable, and the -wal is missing or empty, the file is
    complete and is opened as immutable.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    with _closed_on_error(connection):
        try:
            schema.version(connection)
            return connection
        except sqlite3.OperationalError as error:
            wal = path.with_name(path.name + "-wal")
            complete = not wal.exists() or wal.stat().st_size == 0
            if not (_code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) and complete):
                raise
    connection.close()
    return sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None)


def _create_private(path: Path) -> None:
    """Create the file if necessary and set its mode to 0600; SQLite gives its sidecars the same mode."""
    created = not path.exists()
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with closing(os.fdopen(descriptor, "rb")):
        os.fchmod(descriptor, 0o600)
    if created:
        fs.sync_directory(path.parent)


@contextmanager
def _closed_on_error(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            connection.close()
        raise


def _free_space(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes free"
    except OSError:
        return "free space unknown"


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE


def _translation(path: Path, error: sqlite3.Error) -> StateError:
    match _code(error):
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return LedgerDamaged(f"{path} is damaged: {error}", hint=_MOVE_ASIDE)
        case sqlite3.SQLITE_FULL:
            return StateError(
                f"{path} cannot grow: the disk is full, {_free_space(path)}",
                hint="free some space there, or set akosha_agent_state_dir to a directory on a larger disk",
                transient=True,
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StateError(
                f"{path} is locked by another process", hint="akosha-agent status names the process", transient=True
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StateError(f"{path} cannot be opened: {error}", hint="check the state directory and its owner")
        case sqlite3.SQLITE_IOERR:
            return StateError(f"{path} cannot be read or written: {error}", hint="check the disk", transient=True)
    if str(error).startswith(("no such table", "no such column")):  # the version says that they exist
        return LedgerDamaged(f"{path} is damaged: {error}", hint=_MOVE_ASIDE)
    return StateError(f"{path}: {error}")


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """The size on disk in bytes, with -wal and -shm, and the version of the tables."""

    size: int
    version: int


def examine(path: Path) -> LedgerFacts:
    """Check the entire file with SQLite's quick_check. Blocks. Raises StateError: damaged, too new, not readable."""
    with translated(path), closing(_open_for_check(path)) as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(str(verdict).splitlines()[0])
        return LedgerFacts(size_of(path), schema.version(connection))


def _open_for_check(path: Path) -> sqlite3.Connection:
    """Open the file without creating sidecars: if no process has it open, there is no -wal and the file is complete."""
    if path.is_file() and not path.with_name(f"{path.name}-wal").exists():
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        try:
            schema.check_not_newer(schema.version(connection))
        except BaseException:
            connection.close()
            raise
        return connection
    return open_for_reading(path)
