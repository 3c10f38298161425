"""The file of the ledger: opening and checking it, and SQLite's errors as StateErrors."""

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
"""How long a transaction waits for another process's before it fails."""

WAL_KEPT_BYTES = 8 * 2**20
"""How large the -wal stays once its content is in the file: a first upload of a million memories makes it 100 MB."""

_MOVE_ASIDE = (
    "the next akosha-agent run or sync will move it aside (with its -wal and -shm) and open a new one:"
    " the newest manifest in the bucket restores it, nothing is lost"
)
_ASIDE = ".damaged-"
_PRIMARY_CODE = 0xFF


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the file, made (mode 0600) where it is missing, its tables brought up to date. Raises StateError."""
    with translated(path):
        _make_private(path)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        with _closed_unless_good(connection):
            schema.check_not_newer(schema.version(connection))
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            # On macOS, fsync alone leaves the bytes in the drive's cache; elsewhere these two do nothing.
            connection.execute("PRAGMA fullfsync = ON")
            connection.execute("PRAGMA checkpoint_fullfsync = ON")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_KEPT_BYTES}")
            schema.migrate(connection)
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise LedgerDamaged(f"{path} is damaged: {verdict}", hint=_MOVE_ASIDE)
        return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open the file beside the process that writes it. Raises StateError, also where there is no ledger yet."""
    no_ledger = StateError(f"there is no ledger yet at {path}", hint="it is made by akosha-agent run or sync")
    if not path.is_file():
        raise no_ledger
    with translated(path):
        connection = _connect_for_reading(path)
        with _closed_unless_good(connection):
            found = schema.version(connection)
            schema.check_not_newer(found)
            if found == 0:
                raise no_ledger
            if found < schema.READABLE:
                raise StateError(
                    f"{path} is of an earlier version", hint="akosha-agent run or sync brings it up to date"
                )
            connection.execute("PRAGMA query_only = ON")
        return connection


def is_made(path: Path) -> bool:
    """Say whether there is a ledger; not so long as its writer is still making it. True for one that is damaged."""
    if not path.is_file():
        return False
    try:
        with closing(_connect_for_reading(path)) as connection:
            return schema.version(connection) > 0
    except sqlite3.Error:
        return True


def size_of(path: Path) -> int:
    """Return the bytes of the file and of what SQLite keeps beside it."""
    total = 0
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with suppress(FileNotFoundError):
            total += path.with_name(name).stat().st_size
    return total


def set_aside(path: Path, at: datetime) -> Path:
    """Rename a damaged file, with its -wal and -shm, to `{name}.damaged-{time}`, and return its new path.

    The main file goes first: SQLite ignores a -wal beside a new, empty file. Nobody may have it open for writing.
    Raises StateError.
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
        return aside


def damaged_ledgers(path: Path) -> list[Path]:
    """Return the files that were set aside, the oldest first, without their -wal and -shm."""
    found = path.parent.glob(f"{path.name}{_ASIDE}*")
    return sorted(each for each in found if not each.name.endswith(("-wal", "-shm")))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise what SQLite and the operating system raise as StateError, with the cure."""
    try:
        yield
    except sqlite3.Error as error:
        raise _in_our_words(path, error) from error
    except OSError as error:
        raise StateError(
            f"{path} cannot be used: {error.strerror}", hint="check the state directory and who owns it"
        ) from error


def damaged(what: str) -> LedgerDamaged:
    """Return the error for content that no ledger of ours has written."""
    return LedgerDamaged(f"the ledger is damaged: {what}", hint=_MOVE_ASIDE)


def _connect_for_reading(path: Path) -> sqlite3.Connection:
    """Connect read-only. SQLite wants to make the -shm of a file in WAL mode where the writer has removed it.

    Where it may not (a directory that cannot be written), and no -wal holds anything either, the file alone is the
    whole ledger and is read as it lies.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    with _closed_unless_good(connection):
        try:
            schema.version(connection)
            return connection
        except sqlite3.OperationalError as error:
            wal = path.with_name(path.name + "-wal")
            alone = not wal.exists() or wal.stat().st_size == 0
            if not (_code(error) in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY) and alone):
                raise
    connection.close()
    return sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None)


def _make_private(path: Path) -> None:
    """Make the file, or make sure that it is nobody else's to read; SQLite gives its sidecars the same mode."""
    made = not path.exists()
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    with closing(os.fdopen(descriptor, "rb")):
        os.fchmod(descriptor, 0o600)
    if made:
        fs.sync_directory(path.parent)


@contextmanager
def _closed_unless_good(connection: sqlite3.Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            connection.close()
        raise


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes are"
    except OSError:
        return "nothing is known to be"


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & _PRIMARY_CODE


def _in_our_words(path: Path, error: sqlite3.Error) -> StateError:
    match _code(error):
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return LedgerDamaged(f"{path} is damaged: {error}", hint=_MOVE_ASIDE)
        case sqlite3.SQLITE_FULL:
            return StateError(
                f"{path} cannot grow: the disk is full, {_free(path)} free",
                hint="free some space there, or let akosha_agent_state_dir name a directory on a bigger disk",
                transient=True,
            )
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StateError(
                f"{path} is held by another process", hint="akosha-agent status says which", transient=True
            )
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            return StateError(f"{path} cannot be opened: {error}", hint="check the state directory and who owns it")
        case sqlite3.SQLITE_IOERR:
            return StateError(f"{path} cannot be read or written: {error}", hint="check the disk", transient=True)
    if str(error).startswith(("no such table", "no such column")):  # the version says that they are there
        return LedgerDamaged(f"{path} is damaged: {error}", hint=_MOVE_ASIDE)
    return StateError(f"{path}: {error}")


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """Bytes on disk, with what SQLite keeps beside the file; the version of its tables."""

    size: int
    version: int


def examine(path: Path) -> LedgerFacts:
    """Check the whole file, as quickly as SQLite can. Blocks. Raises StateError: damaged, newer, closed to us."""
    with translated(path), closing(_opened(path)) as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged(str(verdict).splitlines()[0])
        return LedgerFacts(size_of(path), schema.version(connection))


def _opened(path: Path) -> sqlite3.Connection:
    """Where nobody has it open, SQLite would create its sidecars: then the file alone is the whole ledger."""
    if path.is_file() and not path.with_name(f"{path.name}-wal").exists():
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        try:
            schema.check_not_newer(schema.version(connection))
        except BaseException:
            connection.close()
            raise
        return connection
    return open_for_reading(path)
