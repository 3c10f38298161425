"""A result as people and programs are promised it: CONTRACT's dict, and a line of text."""

from agent.domain.events import SyncFailed, SyncResult, SyncSkipped, SyncSucceeded


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
        "request_id": result.request_id,
        "outcome": result.type.split(".")[2],
    }
    if isinstance(result, SyncSucceeded):
        document |= {"location": result.location, "incomplete": dict(result.incomplete)}
    elif isinstance(result, SyncSkipped):
        document["why"] = result.why
    elif isinstance(result, SyncFailed):
        document["errors"] = [{"method": e.method, "error": e.error} for e in result.errors]
        document["retry_at"] = result.retry_at.isoformat() if result.retry_at else None
    return document


def sentence(result: SyncResult) -> str:
    """Return the result in one line for a person."""
    if isinstance(result, SyncSucceeded):
        text = (
            f"{result.upload_id}: {len(result.files_uploaded)} objects, {human_bytes(result.bytes_transferred)} sent "
            f"in {result.duration_seconds:.1f} s to {result.location}"
        )
        return text + "".join(f"; {name} stays owed: {why}" for name, why in sorted(result.incomplete.items()))
    if isinstance(result, SyncSkipped):
        return result.why
    return result.error or "failed"


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
