"""A result as people and programs are promised it: CONTRACT's dict, and a line of text."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime

from agent.domain.errors import AkoshaError, SettingsError
from agent.domain.events import (
    IngestCompleted,
    IngestFailed,
    MethodError,
    SyncFailed,
    SyncResult,
    SyncSkipped,
    SyncSucceeded,
    UploadsPruned,
    UploadVerified,
)
from agent.domain.routing import MANUAL

LOOK = "akosha-agent status shows what stands in the way"
CORRECT = "correct it there: settings are read anew each time"


def contract(result: SyncResult) -> dict[str, object]:
    """Return the documented result fields, and ours beside them."""
    document: dict[str, object] = {
        "method": result.method,
        "success": result.success,
        "files_uploaded": list(result.files_uploaded),
        "bytes_transferred": result.bytes_transferred,
        "duration_seconds": result.duration_seconds,
        "upload_id": result.upload_id,
        "error": result.error,
        "triggered_by": result.triggered_by,
        "caused_by": list(result.caused_by),
        "request_id": result.request_id,
        "outcome": result.type.split(".")[2],
        "hint": None,
    }
    if isinstance(result, SyncSucceeded):
        document |= {
            "location": result.location,
            "incomplete": dict(result.incomplete),
            "memories": result.memories,
            "errors": _errors(result.errors),
        }
    elif isinstance(result, SyncSkipped):
        document["why"] = result.why
    elif isinstance(result, SyncFailed):
        document["errors"] = _errors(result.errors)
        document["retry_at"] = result.retry_at.isoformat() if result.retry_at else None
        hints = dict.fromkeys(filter(None, (cure(e.error) for e in result.errors)))
        document["hint"] = "; ".join(hints) or LOOK
    return document


def _errors(errors: Sequence[MethodError]) -> list[dict[str, str]]:
    return [{"method": e.method, "error": e.error} for e in errors]


def refusal(error: AkoshaError, *, method: str) -> dict[str, object]:
    """Return the same for an error that came before there was a request, for those who want no exception."""
    return {
        "method": method,
        "success": False,
        "files_uploaded": [],
        "bytes_transferred": 0,
        "duration_seconds": 0.0,
        "upload_id": None,
        "error": str(error),
        "triggered_by": MANUAL,
        "caused_by": [],
        "request_id": None,
        "outcome": "failed",
        "hint": mend(error),
        "errors": [{"method": method, "error": str(error)}],
        "retry_at": None,
    }


def mend(error: AkoshaError) -> str:
    """Return the error's hint, or, where it has none, where to look."""
    return error.hint or (CORRECT if isinstance(error, SettingsError) else LOOK)


def cure(error: str) -> str:
    """Return the hint that ends the text of an AkoshaError, "" where it has none. A place or a figure is none.

    >>> cure("the bucket memories does not exist (create it (or set akosha_cloud_bucket))")
    'create it (or set akosha_cloud_bucket)'
    >>> cure("no space left (/var/lib)")
    ''
    """
    if not error.endswith(")"):
        return ""
    depth = 0
    for at in range(len(error) - 1, -1, -1):
        depth += (error[at] == ")") - (error[at] == "(")
        if depth == 0:
            found = error[at + 1 : -1]
            return found if " " in found else ""
    return ""


def sentence(result: SyncResult) -> str:
    """Return the result in one line for a person."""
    if isinstance(result, SyncSucceeded):
        sent = f"{human_bytes(result.bytes_transferred)} sent in {result.duration_seconds:.1f} s to {result.location}"
        failed = "".join(f"; {e.method} failed: {e.error}" for e in result.errors)
        if not result.manifest_key:
            left = "".join(f"; {name}: {why}" for name, why in sorted(result.incomplete.items()))
            return f"{result.memories:,} memories, {sent}{left}{failed}"
        text = f"{result.upload_id}: {len(result.files_uploaded)} objects, {sent}"
        owed = "".join(f"; {name} stays owed: {why}" for name, why in sorted(result.incomplete.items()))
        return f"{text}{owed}{failed}"
    if isinstance(result, SyncSkipped):
        return result.why
    return result.error or "failed"


def ingested(event: IngestCompleted | IngestFailed) -> str:
    """Return what became of an upload on Akosha's side in one line for a person."""
    if isinstance(event, IngestFailed):
        again = f"; tried again at {event.retry_at.astimezone():%H:%M:%S}" if event.retry_at else ""
        return f"{event.upload_id}: {event.error}{again}"
    told = [f"{event.stored:,} memories stored", f"{event.known:,} there already"]
    told += [f"{count:,} kept back: {why}" for why, count in sorted(event.kept_back.items())]
    return f"{event.upload_id}: {'; '.join(told)}"


def verified(event: UploadVerified) -> str:
    """Return what somebody saw who looked at an upload, in one line for a person."""
    looked = "downloaded and read through" if event.deep else "looked at"
    if event.whole:
        return f"{event.upload_id}: whole, {event.objects} objects {looked}"
    wrong = "; ".join(f"{name}: {why}" for name, why in sorted(event.problems.items()))
    return f"{event.upload_id}: not whole, {event.objects} objects {looked}: {wrong}"


def pruned(event: UploadsPruned) -> str:
    """Return what was deleted of the old uploads, in one line for a person."""
    freed = f"{event.objects} objects, {human_bytes(event.bytes_freed)}"
    count = len(event.upload_ids)
    told = [f"{count} upload{'s' * (count != 1)} deleted ({freed}), {event.kept} kept"]
    if event.leftovers:
        told.append(f"{event.leftovers} leftovers of unfinished ones deleted")
    if event.error:
        told.append(f"not all: {event.error}")
    return "; ".join(told)


def human_bytes(count: float) -> str:
    """Return a number of bytes as people read it.

    >>> human_bytes(43_200_000)
    '43.2 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 - SI prefixes
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def when(at: datetime) -> str:
    """Return a time as the clock here shows it; one that no clock here can show, as it is."""
    with suppress(OverflowError, OSError, ValueError):
        at = at.astimezone()
    return f"{at:%Y-%m-%d %H:%M:%S}"
