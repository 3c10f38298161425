"""The demo's checks: pure functions that compare command output, restored data and written data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.entrypoints.demo import writer
from agent.entrypoints.demo.writer import Contents
from agent.entrypoints.formatting import human_bytes


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check."""

    name: str
    passed: bool
    found: str


def uploads_complete(verified: Mapping[str, Any]) -> Check:
    """Check the document of `verify --all --deep --json`."""
    uploads = verified["uploads"]
    damaged = {upload["upload_id"]: upload["problems"] for upload in uploads if not upload["whole"]}
    found = str(damaged) if damaged else f"{len(uploads)} uploads, every object and every table"
    return Check("every upload is complete", bool(uploads and verified["whole"] and not damaged), found)


def reported_once(verified: Mapping[str, Any], reported: Sequence[str], failures: Sequence[str]) -> Check:
    """Check that each upload in the bucket was reported by one event, and that no sync failed."""
    stored = [upload["upload_id"] for upload in verified["uploads"]]
    found = f"{len(reported)} reported, {len(stored)} in the bucket, {len(failures)} failed"
    return Check("each upload was reported once", sorted(reported) == sorted(stored) and not failures, found)


def unchanged_not_sent(sent: int, sizes: Mapping[str, int]) -> Check:
    """Check an upload during which only the reflections changed. `sent`: bytes; `sizes`: of its objects, by name."""
    total = sum(sizes.values())
    found = f"{human_bytes(sent)} sent for an upload of {human_bytes(total)}"
    return Check("unchanged files are not sent again", 0 < sent <= total - sizes[writer.GRAPH], found)


def complete_transactions(contents: Contents) -> Check:
    """Check that an upload made during writes has the row ratios that each transaction keeps."""
    rows = {table: count for table, (count, _) in contents.items()}
    found = f"made while the writer wrote: {', '.join(f'{table} {count}' for table, count in rows.items())}"
    session = rows[writer.CONVERSATIONS] == writer.CONVERSATIONS_PER_REFLECTION * rows[writer.REFLECTIONS] > 0
    operations = rows[writer.ENTITIES] / writer.ENTITIES_PER_OPERATION
    graph = rows[writer.RELATIONSHIPS] == operations * writer.RELATIONSHIPS_PER_OPERATION > 0
    return Check("an upload contains only complete transactions", session and graph, found)


def same_contents(written: Contents, restored: Contents) -> list[Check]:
    """Compare the rows and values of each table: committed by the writer, and restored."""
    checks = []
    for table, (rows, digest) in written.items():
        rows_restored, digest_restored = restored.get(table, (0, ""))
        values = "equal" if digest == digest_restored else "differ"
        checks.append(
            Check(
                f"{table}: the writer's rows and values",
                (rows, digest) == (rows_restored, digest_restored),
                f"{rows} written, {rows_restored} restored, values {values}",
            )
        )
    return checks
