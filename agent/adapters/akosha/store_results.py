"""What a server says about memories it was given, and what may be believed of it: nothing that it did not confirm."""

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
    """Return what became of the memories of these ids. Raises SinkError where the answer does not say it of each.

    Raises it too where the server is in trouble: it is then not the memories' fault.
    """
    data = result.data
    status = None if data is None else data.get("status")
    if data is None or not isinstance(status, str) or status not in _STATUSES:
        raise errors.garbled(address, "the answer does not say what was stored")
    failures = data.get("errors")
    if data.get("error") and not failures:
        raise _refused_whole(address, address.quote(data["error"]))
    if not isinstance(failures, list):
        raise errors.garbled(address, "the answer does not name what was not stored")
    _check_numbers(data, len(ids), len(failures), address)
    refused, existing = _failures(failures, ids, address)
    _check_fault(refused, len(ids), address)
    return StoreResult(stored=len(ids) - len(existing) - len(refused), existing=frozenset(existing), refused=refused)


def of_one(result: ToolResult, memory_id: str, address: ServerAddress) -> StoreResult:
    """Return what became of one memory that went by a tool of its kind. Raises SinkError for the server's trouble."""
    why = _complaint(result)
    if not why:
        return StoreResult(stored=1)
    if errors.is_known(why, memory_id):
        return StoreResult(stored=0, existing=frozenset({0}))
    if errors.is_passing(why):
        raise errors.server_trouble(address, address.quote(why))
    return StoreResult(stored=0, refused={0: _reason(why, memory_id, address)})


def _refused_whole(address: ServerAddress, why: str) -> SinkError:
    if "batch size" in why.lower():
        return SinkError(f"{address}: {why}", hint=errors.VERSION)
    return errors.server_trouble(address, why)


def _check_numbers(data: Message, total: int, failures: int, address: ServerAddress) -> None:
    expected_counts = {"stored": total - failures, "failed": failures, "total": total}
    for name, expected in expected_counts.items():
        given = data.get(name, None if name == "stored" else expected)
        if isinstance(given, bool) or given != expected:
            raise errors.garbled(address, f"the answer does not add up: {name} is not {expected}")


def _failures(
    failures: Sequence[object], ids: Sequence[str], address: ServerAddress
) -> tuple[dict[int, str], set[int]]:
    """Return position -> why for what was not stored, and the positions of what was there already."""
    positions: dict[object, list[int]] = defaultdict(list)
    for position, sent in enumerate(ids):
        positions[sent].append(position)
    refused: dict[int, str] = {}
    existing: set[int] = set()
    for failure in failures:
        entry: Message = failure if isinstance(failure, dict) else {}
        memory_id = entry.get("memory_id")
        if not isinstance(memory_id, str) or not positions.get(memory_id):
            raise errors.garbled(address, "the answer names what was not sent")
        position, why = positions[memory_id].pop(), as_text(entry.get("error"))
        if errors.is_known(why, memory_id):
            existing.add(position)
        else:
            refused[position] = _reason(why, memory_id, address)
    return refused, existing


def _check_fault(refused: dict[int, str], total: int, address: ServerAddress) -> None:
    for reason in refused.values():
        if errors.is_passing(reason):
            raise errors.server_trouble(address, reason)
    if len(refused) == total > 1 and len(set(refused.values())) == 1:
        why = next(iter(refused.values()))
        if not errors.is_items_fault(why):
            raise errors.server_trouble(address, f"it takes nothing: {why}")


def _complaint(result: ToolResult) -> str:
    """Return why a tool did not do it; empty where it did."""
    data = result.data
    if data is None:
        return result.text if result.text.strip().lower().startswith(_FAILING_WORDS) else ""
    if data.get("error"):
        return as_text(data["error"])
    status: object = data.get("status", "")
    if data.get("success") is False or (isinstance(status, str) and status.lower() not in _GOOD):
        return as_text(data.get("message") or data.get("reason") or f"status {status}")
    return ""


def _reason(why: str, memory_id: str, address: ServerAddress) -> str:
    """Return the server's reason without the id, so that equal reasons are equal."""
    return address.quote(why.replace(memory_id, "ID")) or "no reason given"
