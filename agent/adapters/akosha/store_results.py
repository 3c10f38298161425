"""Interprets a server's results of storing memories. A memory counts as stored only if the server confirms it."""

from collections import defaultdict
from collections.abc import Sequence

from agent.adapters.akosha import errors
from agent.adapters.akosha.server_address import ServerAddress, as_text
from agent.adapters.akosha.tools import Message, ToolResult
from agent.domain.errors import SinkError
from agent.ports import StoreResult

_STATUSES = frozenset({"completed", "partial", "failed"})
_GOOD = frozenset({"", "stored", "created", "completed", "ok", "success", "exists", "updated"})
_FAILING_WORDS = ("error", "failed", "failure", "\N{CROSS MARK}")


def of_batch(result: ToolResult, ids: Sequence[str], address: ServerAddress) -> StoreResult:
    """Return the result for the memories with these IDs.

    Raises SinkError if the response does not cover each memory, or if it reports a fault of the server.
    """
    data = result.data
    status = None if data is None else data.get("status")
    if data is None or not isinstance(status, str) or status not in _STATUSES:
        raise errors.invalid_response(address, "the response does not say what was stored")
    failures = data.get("errors")
    if data.get("error") and not failures:
        raise _batch_refused(address, address.quote(data["error"]))
    if not isinstance(failures, list):
        raise errors.invalid_response(address, "the response does not list what was not stored")
    _check_numbers(data, len(ids), len(failures), address)
    refused, existing = _failures(failures, ids, address)
    _check_fault(refused, len(ids), address)
    return StoreResult(stored=len(ids) - len(existing) - len(refused), existing=frozenset(existing), refused=refused)


def of_one(result: ToolResult, memory_id: str, address: ServerAddress) -> StoreResult:
    """Return the result for one memory stored with its kind's tool. Raises SinkError for a fault of the server."""
    reason = _failure_reason(result)
    if not reason:
        return StoreResult(stored=1)
    if errors.is_duplicate(reason, memory_id):
        return StoreResult(stored=0, existing=frozenset({0}))
    if errors.is_transient(reason):
        raise errors.server_error(address, address.quote(reason))
    return StoreResult(stored=0, refused={0: _reason_without_id(reason, memory_id, address)})


def _batch_refused(address: ServerAddress, reason: str) -> SinkError:
    if "batch size" in reason.lower():
        return SinkError(f"{address}: {reason}", hint=errors.VERSION)
    return errors.server_error(address, reason)


def _check_numbers(data: Message, total: int, failures: int, address: ServerAddress) -> None:
    expected_counts = {"stored": total - failures, "failed": failures, "total": total}
    for name, expected in expected_counts.items():
        given = data.get(name, None if name == "stored" else expected)
        if isinstance(given, bool) or given != expected:
            raise errors.invalid_response(address, f"the response is inconsistent: {name} is not {expected}")


def _failures(
    failures: Sequence[object], ids: Sequence[str], address: ServerAddress
) -> tuple[dict[int, str], set[int]]:
    """Return the refused memories (position -> reason), and the positions of those that already existed."""
    positions: dict[object, list[int]] = defaultdict(list)
    for position, sent in enumerate(ids):
        positions[sent].append(position)
    refused: dict[int, str] = {}
    existing: set[int] = set()
    for failure in failures:
        entry: Message = failure if isinstance(failure, dict) else {}
        memory_id = entry.get("memory_id")
        if not isinstance(memory_id, str) or not positions.get(memory_id):
            raise errors.invalid_response(address, "the response names a memory that was not sent")
        position, reason = positions[memory_id].pop(), as_text(entry.get("error"))
        if errors.is_duplicate(reason, memory_id):
            existing.add(position)
        else:
            refused[position] = _reason_without_id(reason, memory_id, address)
    return refused, existing


def _check_fault(refused: dict[int, str], total: int, address: ServerAddress) -> None:
    for reason in refused.values():
        if errors.is_transient(reason):
            raise errors.server_error(address, reason)
    if len(refused) == total > 1 and len(set(refused.values())) == 1:
        reason = next(iter(refused.values()))
        if not errors.is_memory_fault(reason):
            raise errors.server_error(address, f"it accepts no memories: {reason}")


def _failure_reason(result: ToolResult) -> str:
    """Return the reason why a tool failed; empty if it succeeded."""
    data = result.data
    if data is None:
        return result.text if result.text.strip().lower().startswith(_FAILING_WORDS) else ""
    if data.get("error"):
        return as_text(data["error"])
    status: object = data.get("status", "")
    if data.get("success") is False or (isinstance(status, str) and status.lower() not in _GOOD):
        return as_text(data.get("message") or data.get("reason") or f"status {status}")
    return ""


def _reason_without_id(reason: str, memory_id: str, address: ServerAddress) -> str:
    """Return the server's reason without the ID, so that equal reasons are equal."""
    return address.quote(reason.replace(memory_id, "ID")) or "no reason given"
