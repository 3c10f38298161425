"""The directories, the file systems they lie on, and what the kernel allows."""

import os
from shlex import quote

from agent.domain.errors import SnapshotError
from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Finding, error, ok, skipped, warning
from agent.entrypoints.results import human_bytes

DATA, STATE, SPACE, INOTIFY = "data directory", "state directory", "free space", "inotify"

MAKE_SPACE = "make room there, or set akosha_agent_state_dir to a directory on a larger disk"

_OTHERS = 0o077
_NEEDED = 2
"""Watches, and instances of inotify, that a running agent has: one each for the data directory and the spool."""


async def data_directory(ground: CheckContext) -> list[Finding]:
    path = ground.settings.agent_data_dir
    spot = await ground.examination.spot(path)
    folder = spot.folder
    if not folder.exists:
        cure = "start Session-Buddy once, or set akosha_agent_data_dir to where its databases are"
        return [error(DATA, f"{path} does not exist", cure=cure)]
    if folder.closed:
        return [error(DATA, f"{path} cannot be read: {folder.closed}", cure=f"chmod u+rx {quote(str(path))}")]
    if not folder.is_directory:
        cure = "set akosha_agent_data_dir to the directory that Session-Buddy's databases are in"
        return [error(DATA, f"{path} is not a directory", cure=cure)]
    if spot.is_polled:
        return [
            warning(
                DATA,
                f"{path} is on a file system ({spot.file_system}) that tells of no change: it is looked at every 2 s",
                cure="keep the databases on a local disk, and set akosha_agent_data_dir to them",
            )
        ]
    return [ok(DATA, f"{path}{_on(spot.file_system)}")]


async def state_directory(ground: CheckContext) -> list[Finding]:
    path, elsewhere = ground.settings.agent_state_dir, "set akosha_agent_state_dir to a directory of your own"
    spot = await ground.examination.spot(path)
    folder, quoted = spot.folder, quote(str(path))
    data = (await ground.examination.spot(ground.settings.agent_data_dir)).real
    if spot.real.is_relative_to(data) or data.is_relative_to(spot.real):
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
        who = f"belongs to user {folder.owner}, not to user {os.geteuid()} who runs this"
        return [error(STATE, f"{path} {who}", cure=f"sudo chown -R {os.geteuid()} {quoted}, or {elsewhere}")]
    if not folder.writable:
        return [error(STATE, f"{path} cannot be written to", cure=f"chmod 700 {quoted}, or {elsewhere}")]
    found = []
    if folder.mode & _OTHERS:
        found.append(warning(STATE, f"{path} is open to others (mode {folder.mode:04o})", cure=f"chmod 700 {quoted}"))
    if spot.is_polled:
        found.append(
            warning(
                STATE,
                f"{path} is on a network share ({spot.file_system}), where locks and the ledger are at risk",
                cure="set akosha_agent_state_dir to a directory on a local disk",
            )
        )
    return found or [ok(STATE, f"{path}{_on(spot.file_system)}, mode {folder.mode:04o}")]


async def free_space(ground: CheckContext) -> list[Finding]:
    """A copy of a database is staged in the state directory; twice its size leaves room for all else."""
    path = ground.settings.agent_state_dir
    free = (await ground.examination.spot(path)).folder.free
    try:
        largest = max((found.size for found in await ground.examination.databases()), default=0)
    except SnapshotError:
        largest = 0  # the data directory's own check says so
    told = f"{human_bytes(free)} free for {path}, the largest database has {human_bytes(largest)}"
    if free < largest:
        return [error(SPACE, told, cure=MAKE_SPACE)]
    if free < 2 * largest:
        return [warning(SPACE, told, cure=MAKE_SPACE)]
    return [ok(SPACE, told)]


async def inotify(ground: CheckContext) -> list[Finding]:
    """Short of watches, a running agent polls, and does not stop: a warning. One that runs has its share already."""
    limits = await ground.examination.inotify()
    if limits is None:
        return [skipped(INOTIFY, "this system has none: changes are told in another way")]
    needed = 0 if await ground.examination.holder() else _NEEDED
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
                    f"{used} of {most} {what} are in use: changes will be looked for every 2 s instead",
                    cure=f"sudo sysctl -w {setting}={max(2 * most, 512)}, and the same in /etc/sysctl.d/akosha.conf",
                )
            )
    told = f"{limits.watches} of {limits.max_watches} watches, {limits.instances} of {limits.max_instances} instances"
    return found or [ok(INOTIFY, f"{told} in use, as far as this user may see")]


def _on(file_system: str) -> str:
    return f", on {file_system}" if file_system else ""
