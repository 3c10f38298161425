"""Checks of this machine: directories, databases, the ledger, disk space, inotify."""

import os
from importlib import metadata
from pathlib import Path
from shlex import quote

from agent.adapters import host_facts
from agent.adapters.duckdb import database_facts
from agent.adapters.duckdb.database_facts import DatabaseFacts
from agent.adapters.host_facts import Folder
from agent.adapters.sqlite_ledger import file as ledger_file
from agent.adapters.watcher.scan import file_system, silent
from agent.domain.errors import LedgerDamaged, SnapshotError
from agent.entrypoints.doctor.context import DoctorContext, in_thread
from agent.entrypoints.doctor.findings import Finding, error, from_error, ok, skipped, warning
from agent.entrypoints.formatting import human_bytes

DATA, DATABASES, STATE, SPACE = "data directory", "databases", "state directory", "free space"
LEDGER, INOTIFY = "ledger", "inotify"

FREE_SPACE = "make room there, or set akosha_agent_state_dir to a directory on a larger disk"
START_SESSION = "start a session with Session-Buddy, or set akosha_agent_data_dir to where its databases are"

_OTHERS = 0o077
_INOTIFY_NEEDED = 2
"""Watches, and instances of inotify, of a running agent: one each for the data directory and the spool."""


async def data_directory(context: DoctorContext) -> list[Finding]:
    path = context.settings.agent_data_dir
    folder, kind = await _look_at(path)
    if not folder.exists:
        cure = "start Session-Buddy once, or set akosha_agent_data_dir to where its databases are"
        return [error(DATA, f"{path} does not exist", cure=cure)]
    if folder.closed:
        return [error(DATA, f"{path} cannot be read: {folder.closed}", cure=f"chmod u+rx {quote(str(path))}")]
    if not folder.is_directory:
        cure = "set akosha_agent_data_dir to the directory that Session-Buddy's databases are in"
        return [error(DATA, f"{path} is not a directory", cure=cure)]
    if silent(kind):
        return [
            warning(
                DATA,
                f"{path} is on a file system ({kind}) that reports no changes: it is scanned every 2 s",
                cure="keep the databases on a local disk, and set akosha_agent_data_dir to them",
            )
        ]
    return [ok(DATA, f"{path}{_on(kind)}")]


async def databases(context: DoctorContext) -> list[Finding]:
    """One finding for each. A database that cannot be read is not uploaded; an unknown format is not verified."""
    found: list[Finding] = []
    try:
        engine = metadata.version("duckdb")
    except metadata.PackageNotFoundError:
        engine = ""
        text = "the engine that verifies copies, duckdb, is not installed"
        found.append(error(DATABASES, text, cure="pip install --force-reinstall akosha-agent"))
    path = context.settings.agent_data_dir
    facts = await in_thread(lambda: database_facts.examine(path))
    if not facts:
        folder, _ = await _look_at(path)
        if not folder.is_directory:
            return [*found, skipped(DATABASES, "there is no directory to look in")]
        return [*found, warning(DATABASES, f"none in {path} yet", cure=START_SESSION)]
    return found + [await _database(context, database, engine) for database in facts]


async def _database(context: DoctorContext, database: DatabaseFacts, engine: str) -> Finding:
    name = f"database {database.name}"
    if database.problem is not None:
        cure = "put a good copy in its place, or move it away; the others are uploaded meanwhile"
        return from_error(name, database.problem, cure=cure)
    assert database.header is not None
    size = human_bytes(database.size) + (f", {human_bytes(database.wal)} of it in its WAL" if database.wal else "")
    if not database.is_known:
        return warning(
            name,
            f"{size}; its format ({database.header.version}) is not known to our engine, duckdb {engine}",
            cure="pip install --upgrade duckdb where akosha-agent is installed; until then it is uploaded unverified",
        )
    readers = f", DuckDB {database.engine} and later read it" if database.engine else ""
    open_in = await in_thread(lambda: host_facts.holders(database.paths, context.proc))
    programs = sorted({program for programs in open_in.values() for program in programs})
    detail = f"open in {', '.join(programs)}" if programs else ""
    return ok(name, f"{size}; format {database.header.version}{readers}", detail=detail)


async def state_directory(context: DoctorContext) -> list[Finding]:
    path, elsewhere = context.settings.agent_state_dir, "set akosha_agent_state_dir to a directory of your own"
    folder, kind = await _look_at(path)
    real, data = await in_thread(lambda: (path.resolve(), context.settings.agent_data_dir.resolve()))
    quoted = quote(str(path))
    if real.is_relative_to(data) or data.is_relative_to(real):
        return [error(STATE, f"{path} and the data directory lie within each other", cure=elsewhere)]
    if not folder.exists:
        if not folder.writable:
            return [error(STATE, f"{path} does not exist and cannot be made", cure=elsewhere)]
        return [ok(STATE, f"{path} is made at the first start")]
    if folder.closed:
        return [error(STATE, f"{path} cannot be read: {folder.closed}", cure=f"chmod 700 {quoted}, or {elsewhere}")]
    if not folder.is_directory:
        return [error(STATE, f"{path} is not a directory", cure=f"move it away, or {elsewhere}")]
    if not folder.is_ours:
        text = f"{path} belongs to user {folder.owner}, not to user {os.geteuid()} who runs this"
        return [error(STATE, text, cure=f"sudo chown -R {os.geteuid()} {quoted}, or {elsewhere}")]
    if not folder.writable:
        return [error(STATE, f"{path} cannot be written to", cure=f"chmod 700 {quoted}, or {elsewhere}")]
    found = []
    if folder.mode & _OTHERS:
        found.append(warning(STATE, f"{path} is open to others (mode {folder.mode:04o})", cure=f"chmod 700 {quoted}"))
    if silent(kind):
        found.append(
            warning(
                STATE,
                f"{path} is on a network share ({kind}), where locks and the ledger are at risk",
                cure="set akosha_agent_state_dir to a directory on a local disk",
            )
        )
    return found or [ok(STATE, f"{path}{_on(kind)}, mode {folder.mode:04o}")]


async def free_space(context: DoctorContext) -> list[Finding]:
    """A copy of a database is staged in the state directory; twice its size leaves room for all else."""
    path = context.settings.agent_state_dir
    folder, _ = await _look_at(path)
    try:
        facts = await in_thread(lambda: database_facts.examine(context.settings.agent_data_dir))
    except SnapshotError:
        facts = []  # reported by the check of the databases
    largest = max((database.size for database in facts), default=0)
    text = f"{human_bytes(folder.free)} free for {path}, the largest database has {human_bytes(largest)}"
    if folder.free < largest:
        return [error(SPACE, text, cure=FREE_SPACE)]
    if folder.free < 2 * largest:
        return [warning(SPACE, text, cure=FREE_SPACE)]
    return [ok(SPACE, text)]


async def ledger(context: DoctorContext) -> list[Finding]:
    path = context.home.state.ledger_file
    try:
        facts = await in_thread(lambda: ledger_file.examine(path) if path.exists() else None)
    except LedgerDamaged as damaged:
        return [from_error(LEDGER, damaged, cure="akosha-agent sync")]
    if facts is None:
        return [skipped(LEDGER, "there is none yet: the first start makes it")]
    return [ok(LEDGER, f"whole, {human_bytes(facts.size)}, version {facts.version}")]


async def inotify(context: DoctorContext) -> list[Finding]:
    """Without a free watch a running agent polls: a warning. An agent that runs has its share already."""
    limits = await in_thread(lambda: host_facts.inotify(context.proc))
    if limits is None:
        return [skipped(INOTIFY, "this system has none: changes are noticed in another way")]
    needed = 0 if await in_thread(context.home.holder) else _INOTIFY_NEEDED
    found = []
    for what, used, most in (
        ("watches", limits.watches, limits.max_watches),
        ("instances", limits.instances, limits.max_instances),
    ):
        if used + needed > most:
            setting = f"fs.inotify.max_user_{what}"
            found.append(
                warning(
                    INOTIFY,
                    f"{used} of {most} {what} are in use: the directories are scanned every 2 s instead",
                    cure=f"sudo sysctl -w {setting}={max(2 * most, 512)}, and the same in /etc/sysctl.d/akosha.conf",
                )
            )
    text = f"{limits.watches} of {limits.max_watches} watches, {limits.instances} of {limits.max_instances} instances"
    return found or [ok(INOTIFY, f"{text} in use, as far as this user may see")]


async def _look_at(path: Path) -> tuple[Folder, str]:
    """Return the facts of a directory, and its file system, "" where that is not known. Raises OSError."""
    return await in_thread(lambda: (host_facts.folder(path), file_system(path)))


def _on(kind: str) -> str:
    return f", on {kind}" if kind else ""
