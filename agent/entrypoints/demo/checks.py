"""The checks of what arrived: every one can fail, and says what it has seen."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.domain.errors import WireError
from agent.entrypoints.demo import shape
from agent.entrypoints.demo.bucket import Upload, upload_folders
from agent.entrypoints.demo.shape import Content, Tally

CHECKER = "agent.entrypoints.demo.checker"
CHECKER_SECONDS = 60.0

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Check:
    """A check, whether it held, and what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Opened:
    """What DuckDB found in an unpacked upload: contents per table, or the error."""

    tally: Tally
    error: str = ""


async def examine(bucket: Path, scratch: Path, wrote: Tally) -> list[Check]:
    """Check all uploads in a bucket, and that the newest holds what the writer wrote; unpacks into `scratch`.

    Uses nothing of the agent's own: the manifest is read as JSON, objects are unpacked by gzip, databases opened by
    DuckDB in a process of its own.
    """
    uploads, unreadable = await asyncio.to_thread(_read, bucket)
    if not uploads:
        return [_check("uploads with a manifest", unreadable or ["there is no upload"], "")]
    objects = sum(len(upload.parts) for upload in uploads)
    stored = sum(upload.total_size for upload in uploads)
    damaged = await asyncio.to_thread(_unpack, uploads, scratch)
    opened = await open_all([scratch / upload.folder.name for upload in uploads])
    newest = opened[uploads[-1].folder.name]
    return [
        _check("every upload has its manifest", unreadable, f"{len(uploads)} uploads"),
        _check(
            "every object is in place, and no other",
            [wrong for upload in uploads for wrong in upload.misplaced()],
            f"{objects} objects",
        ),
        _check(
            "sizes as the manifests say",
            [wrong for upload in uploads for wrong in upload.wrong_sizes()],
            f"{stored:,} bytes stored",
        ),
        _check("SHA-256 of every file, unpacked", damaged, f"{objects} files"),
        _check(
            "every upload opens with DuckDB",
            [f"{name}: {found.error}" for name, found in opened.items() if found.error],
            f"{len(opened)} uploads, main file and WAL together",
        ),
        _check(
            "no upload holds half a transaction",
            [f"{name}: {half}" for name, found in opened.items() if not found.error for half in _halves(found.tally)],
            f"{len(opened)} uploads, taken while the writer held the files",
        ),
        _check(
            "rows as the manifests say",
            [wrong for upload in uploads for wrong in _other_rows(upload, opened[upload.folder.name])],
            "counted before the upload and after it",
        ),
        await asyncio.to_thread(_remembered, uploads, wrote),
        *(_same(table, wrote[table], newest) for tables in shape.TABLES.values() for table in tables),
    ]


async def open_all(folders: Sequence[Path]) -> dict[str, Opened]:
    """Have the checker's process open the databases in each folder; folder name -> what it found."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", CHECKER, *map(str, folders),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    try:
        async with asyncio.timeout(CHECKER_SECONDS):
            answer, complaint = await child.communicate()
        ended = f"the checker ended with {child.returncode}: {complaint.decode(errors='replace')[-200:]}"
    except TimeoutError:
        answer, ended = b"", f"the checker was not done after {CHECKER_SECONDS:g} s"
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    found = {folder.name: Opened({}, ended) for folder in folders}
    for line in answer.splitlines():
        told = json.loads(line)
        tally = {table: Content(rows, digest) for table, (rows, digest) in told["tables"].items()}
        found[Path(told["folder"]).name] = Opened(tally, told["error"] or "")
    return found


def _read(bucket: Path) -> tuple[list[Upload], list[str]]:
    uploads, unreadable = [], []
    for folder in upload_folders(bucket):
        try:
            uploads.append(Upload.read(folder))
        except WireError as error:
            unreadable.append(error.message)
    return uploads, unreadable


def _unpack(uploads: Sequence[Upload], scratch: Path) -> list[str]:
    return [wrong for upload in uploads for wrong in upload.unpack(scratch / upload.folder.name)]


def _remembered(uploads: Sequence[Upload], wrote: Tally) -> Check:
    """See that each row is in the memories of some upload: what is new, or changed, since the one before."""
    rows: set[tuple[str, str]] = set()
    try:
        for upload in uploads:
            rows |= upload.remembered()
    except (WireError, OSError) as error:
        return Check("memories.json: every row", ok=False, detail=str(error))
    wanted = sum(content.rows for content in wrote.values())
    return Check("memories.json: every row", ok=len(rows) == wanted, detail=f"{len(rows)} = {wanted}, over all uploads")


def _halves(tally: Tally) -> list[str]:
    return shape.halves({table: content.rows for table, content in tally.items()})


def _other_rows(upload: Upload, opened: Opened) -> list[str]:
    return [
        f"{upload.folder.name}: {table} has {content.rows} rows, not {upload.rows.get(table, 'uncounted')}"
        for table, content in opened.tally.items()
        if upload.rows.get(table) != content.rows
    ]


def _same(table: str, wrote: Content, newest: Opened) -> Check:
    found = newest.tally.get(table)
    name = f"{table}: the writer's rows"
    if found is None:
        return Check(name, ok=False, detail=f"none = {wrote.rows}")
    if found.rows != wrote.rows:
        return Check(name, ok=False, detail=f"{found.rows} arrived, {wrote.rows} were written")
    alike = found.digest == wrote.digest
    return Check(name, ok=alike, detail=f"{found.rows} = {wrote.rows}, {'every' if alike else 'not every'} value alike")


def _check(name: str, wrong: Sequence[str], right: str) -> Check:
    if not wrong:
        return Check(name, ok=True, detail=right)
    more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    return Check(name, ok=False, detail="; ".join(wrong[:_SHOWN]) + more)
