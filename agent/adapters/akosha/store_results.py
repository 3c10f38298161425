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


def of_batch(result: ToolResult, ids: Sequence[str], place: ServerAddress) -> StoreResult:
    """Return what became of the memories of these ids. Raises SinkError where the answer does not say it of each.

    Raises it too where the server is in trouble: it is then not the memories' fault.
    """
    data = result.data
    status = None if data is None else data.get("status")
    if data is None or not isinstance(status, str) or status not in _STATUSES:
        raise errors.garbled(place, "the answer does not say what was stored")
    failures = data.get("errors")
    if data.get("error") and not failures:
        raise _refused_whole(place, place.words(data["error"]))
    if not isinstance(failures, list):
        raise errors.garbled(place, "the answer does not name what was not stored")
    _check_numbers(data, len(ids), len(failures), place)
    refused, there = _failures(failures, ids, place)
    _check_fault(refused, len(ids), place)
    return StoreResult(stored=len(ids) - len(there) - len(refused), there=frozenset(there), refused=refused)


def of_one(result: ToolResult, memory_id: str, place: ServerAddress) -> StoreResult:
    """Return what became of one memory that went by a tool of its kind. Raises SinkError for the server's trouble."""
    why = _complaint(result)
    if not why:
        return StoreResult(stored=1)
    if errors.is_known(why, memory_id):
        return StoreResult(stored=0, there=frozenset({0}))
    if errors.is_passing(why):
        raise errors.trouble(place, place.words(why))
    return StoreResult(stored=0, refused={0: _reason(why, memory_id, place)})


def _refused_whole(place: ServerAddress, why: str) -> SinkError:
    if "batch size" in why.lower():
        return SinkError(f"{place}: {why}", hint=errors.VERSION)
    return errors.trouble(place, why)


def _check_numbers(data: Message, total: int, failures: int, place: ServerAddress) -> None:
    told = {"stored": total - failures, "failed": failures, "total": total}
    for name, expected in told.items():
        given = data.get(name, None if name == "stored" else expected)
        if isinstance(given, bool) or given != expected:
            raise errors.garbled(place, f"the answer does not add up: {name} is not {expected}")


def _failures(failures: Sequence[object], ids: Sequence[str], place: ServerAddress) -> tuple[dict[int, str], set[int]]:
    """Return position -> why for what was not stored, and the positions of what was there already."""
    positions: dict[object, list[int]] = defaultdict(list)
    for position, sent in enumerate(ids):
        positions[sent].append(position)
    refused: dict[int, str] = {}
    there: set[int] = set()
    for failure in failures:
        told: Message = failure if isinstance(failure, dict) else {}
        memory_id = told.get("memory_id")
        if not isinstance(memory_id, str) or not positions.get(memory_id):
            raise errors.garbled(place, "the answer names what was not sent")
        position, why = positions[memory_id].pop(), as_text(told.get("error"))
        if errors.is_known(why, memory_id):
            there.add(position)
        else:
            refused[position] = _reason(why, memory_id, place)
    return refused, there


def _check_fault(refused: dict[int, str], total: int, place: ServerAddress) -> None:
    for reason in refused.values():
        if errors.is_passing(reason):
            raise errors.trouble(place, reason)
    if len(refused) == total > 1 and len(set(refused.values())) == 1:
        why = next(iter(refused.values()))
        if not errors.is_items_fault(why):
            raise errors.trouble(place, f"it takes nothing: {why}")


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


def _reason(why: str, memory_id: str, place: ServerAddress) -> str:
    """Return the server's reason without the id, so that equal reasons are equal."""
    return place.words(why.replace(memory_id, "ID")) or "no reason given"
