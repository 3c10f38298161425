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
from agent.entrypoints.installation import REINSTALL

DATA, DATABASES, STATE, SPACE = "data directory", "databases", "state directory", "free space"
LEDGER, INOTIFY = "ledger", "inotify"

FREE_SPACE = "free space there, or set akosha_agent_state_dir to a directory on a larger disk"
START_SESSION = "start a session with Session-Buddy, or set akosha_agent_data_dir to the directory of its databases"

_OTHERS = 0o077
_INOTIFY_NEEDED = 2
"""Inotify watches and instances that a running agent needs: one each for the data directory and the spool.

It watches the directories above, too, as far as the limit permits."""


async def data_directory(context: DoctorContext) -> list[Finding]:
    path = context.settings.agent_data_dir
    folder, kind = await _look_at(path)
    if not folder.exists:
        hint = "start Session-Buddy once, or set akosha_agent_data_dir to the directory of its databases"
        return [error(DATA, f"{path} does not exist", hint=hint)]
    if folder.closed:
        return [error(DATA, f"{path} cannot be read: {folder.closed}", hint=f"chmod u+rx {quote(str(path))}")]
    if not folder.is_directory:
        hint = "set akosha_agent_data_dir to the directory of Session-Buddy's databases"
        return [error(DATA, f"{path} is not a directory", hint=hint)]
    if silent(kind):
        return [
            warning(
                DATA,
                f"{path} is on a file system ({kind}) that does not report changes: it is scanned every 2 s",
                hint="move the databases to a local disk, and set akosha_agent_data_dir to their directory",
            )
        ]
    return [ok(DATA, f"{path}{_on(kind)}")]


async def databases(context: DoctorContext) -> list[Finding]:
    """One finding per database. An unreadable database is not uploaded; one in an unknown format is not verified."""
    found: list[Finding] = []
    try:
        engine = metadata.version("duckdb")
    except metadata.PackageNotFoundError:
        engine = ""
        text = "duckdb, which verifies copies, is not installed"
        found.append(error(DATABASES, text, hint=REINSTALL))
    path = context.settings.agent_data_dir
    facts = await in_thread(lambda: database_facts.examine(path))
    if not facts:
        folder, _ = await _look_at(path)
        if not folder.is_directory:
            return [*found, skipped(DATABASES, "the data directory does not exist")]
        return [*found, warning(DATABASES, f"none in {path} yet", hint=START_SESSION)]
    return found + [await _database(context, database, engine) for database in facts]


async def _database(context: DoctorContext, database: DatabaseFacts, engine: str) -> Finding:
    name = f"database {database.name}"
    if database.problem is not None:
        hint = "replace it with a good copy, or move it away; other databases are still uploaded"
        return from_error(name, database.problem, hint=hint)
    assert database.header is not None
    size = human_bytes(database.size) + (f", {human_bytes(database.wal)} of it in its WAL" if database.wal else "")
    if not database.is_known:
        return warning(
            name,
            f"{size}; its format ({database.header.version}) is unknown to the agent's DuckDB {engine}",
            hint="pip install --upgrade duckdb in akosha-agent's environment; until then it is uploaded unverified",
        )
    readers = f", readable by DuckDB {database.engine} and newer" if database.engine else ""
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
        return [error(STATE, f"{path} and the data directory contain one another", hint=elsewhere)]
    if not folder.exists:
        if not folder.writable:
            return [error(STATE, f"{path} does not exist and cannot be created", hint=elsewhere)]
        return [ok(STATE, f"{path} does not exist yet: the first start creates it")]
    if folder.closed:
        return [error(STATE, f"{path} cannot be read: {folder.closed}", hint=f"chmod 700 {quoted}, or {elsewhere}")]
    if not folder.is_directory:
        return [error(STATE, f"{path} is not a directory", hint=f"move it away, or {elsewhere}")]
    if not folder.is_ours:
        text = f"{path} belongs to user {folder.owner}, but this command runs as user {os.geteuid()}"
        return [error(STATE, text, hint=f"sudo chown -R {os.geteuid()} {quoted}, or {elsewhere}")]
    if not folder.writable:
        return [error(STATE, f"{path} cannot be written to", hint=f"chmod 700 {quoted}, or {elsewhere}")]
    found = []
    if folder.mode & _OTHERS:
        found.append(
            warning(STATE, f"{path} is accessible to other users (mode {folder.mode:04o})", hint=f"chmod 700 {quoted}")
        )
    if silent(kind):
        found.append(
            warning(
                STATE,
                f"{path} is on a network share ({kind}), where file locks and the ledger are not reliable",
                hint="set akosha_agent_state_dir to a directory on a local disk",
            )
        )
    return found or [ok(STATE, f"{path}{_on(kind)}, mode {folder.mode:04o}")]


async def free_space(context: DoctorContext) -> list[Finding]:
    """Check the space for staged copies: twice the largest database leaves room for everything else."""
    path = context.settings.agent_state_dir
    folder, _ = await _look_at(path)
    try:
        facts = await in_thread(lambda: database_facts.examine(context.settings.agent_data_dir))
    except SnapshotError:
        facts = []  # reported by the check of the databases
    largest = max((database.size for database in facts), default=0)
    text = f"{human_bytes(folder.free)} free for {path}"
    if largest:
        text += f"; the largest database has {human_bytes(largest)}"
    if folder.free < largest:
        return [error(SPACE, text, hint=FREE_SPACE)]
    if folder.free < 2 * largest:
        return [warning(SPACE, text, hint=FREE_SPACE)]
    return [ok(SPACE, text)]


async def ledger(context: DoctorContext) -> list[Finding]:
    path = context.home.state.ledger_file
    try:
        facts = await in_thread(lambda: ledger_file.examine(path) if path.exists() else None)
    except LedgerDamaged as damaged:
        return [from_error(LEDGER, damaged, hint="akosha-agent sync")]
    if facts is None:
        return [skipped(LEDGER, "it does not exist yet: the first start creates it")]
    return [ok(LEDGER, f"intact, {human_bytes(facts.size)}, version {facts.version}")]


async def inotify(context: DoctorContext) -> list[Finding]:
    """Warn if no watch is free: the agent then polls. A running agent already has its watches."""
    limits = await in_thread(lambda: host_facts.inotify(context.proc))
    if limits is None:
        return [skipped(INOTIFY, "not on this system, where changes are detected in another way")]
    needed = 0 if await in_thread(context.home.holder) else _INOTIFY_NEEDED
    found = []
    for resource, used, limit in (
        ("watches", limits.watches, limits.max_watches),
        ("instances", limits.instances, limits.max_instances),
    ):
        if used + needed > limit:
            setting = f"fs.inotify.max_user_{resource}"
            found.append(
                warning(
                    INOTIFY,
                    f"{used} of {limit} {resource} are in use: the directories are scanned every 2 s instead",
                    hint=f"sudo sysctl -w {setting}={max(2 * limit, 512)}, and the same in /etc/sysctl.d/akosha.conf",
                )
            )
    text = f"{limits.watches} of {limits.max_watches} watches, {limits.instances} of {limits.max_instances} instances"
    return found or [ok(INOTIFY, f"{text} in use, as far as visible to this user")]


async def _look_at(path: Path) -> tuple[Folder, str]:
    """Return the facts of a directory and its file system type ("" if unknown). Raises OSError."""
    return await in_thread(lambda: (host_facts.folder(path), file_system(path)))


def _on(kind: str) -> str:
    return f", on {kind}" if kind else ""
