"""What the core asks of the world, as promises. Adapters keep them; `tests/contracts` holds every adapter to them."""

from agent.ports.bus import BusState, EventBus, Handler, Message, Responder, StreamMark, Subscription
from agent.ports.clock import Clock
from agent.ports.inputs import Spool, Watch
from agent.ports.ledger import HistoryEntry, Ledger
from agent.ports.memories import (
    Held,
    MemoriesDraft,
    MemoriesFile,
    MemoryLedger,
    MemoryReader,
    MemorySink,
    MemorySource,
    Offer,
    Packed,
    Receipt,
    Standing,
    WrittenMemories,
)
from agent.ports.meter import Meter, Unmetered
from agent.ports.methods import Delivered, Reporter, SyncMethod, Unchanged
from agent.ports.objects import Creation, ObjectStore, Progress, StoredObject, is_changed, untold
from agent.ports.reconnecting import Reconnectable, reset_clients
from agent.ports.snapshots import Compressor, Snapshot, SnapshotTaker
from agent.ports.supervisor import Supervisor
from agent.ports.surroundings import Connected, Surroundings, Upheaval
from agent.ports.unexpected import UnexpectedErrors

__all__ = [
    "BusState",
    "Clock",
    "Compressor",
    "Connected",
    "Creation",
    "Delivered",
    "EventBus",
    "Handler",
    "Held",
    "HistoryEntry",
    "Ledger",
    "MemoriesDraft",
    "MemoriesFile",
    "MemoryLedger",
    "MemoryReader",
    "MemorySink",
    "MemorySource",
    "Message",
    "Meter",
    "ObjectStore",
    "Offer",
    "Packed",
    "Progress",
    "Receipt",
    "Reconnectable",
    "Reporter",
    "Responder",
    "Snapshot",
    "SnapshotTaker",
    "Spool",
    "Standing",
    "StoredObject",
    "StreamMark",
    "Subscription",
    "Supervisor",
    "Surroundings",
    "SyncMethod",
    "Unchanged",
    "UnexpectedErrors",
    "Unmetered",
    "Upheaval",
    "Watch",
    "WrittenMemories",
    "is_changed",
    "reset_clients",
    "untold",
]
