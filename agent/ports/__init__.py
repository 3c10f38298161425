"""What the core asks of the world, as promises. Adapters keep them; `tests/contracts` holds every adapter to them."""

from agent.ports.bus import BusState, EventBus, Handler, Message, Responder, StreamMark, Subscription
from agent.ports.clock import Clock
from agent.ports.inputs import Spool, Watch
from agent.ports.ledger import HistoryEntry, Ledger
from agent.ports.methods import Delivered, Reporter, SyncMethod, Unchanged
from agent.ports.objects import ObjectStore, Progress, StoredObject, untold
from agent.ports.snapshots import Compressor, Snapshot, SnapshotTaker

__all__ = [
    "BusState",
    "Clock",
    "Compressor",
    "Delivered",
    "EventBus",
    "Handler",
    "HistoryEntry",
    "Ledger",
    "Message",
    "ObjectStore",
    "Progress",
    "Reporter",
    "Responder",
    "Snapshot",
    "SnapshotTaker",
    "Spool",
    "StoredObject",
    "StreamMark",
    "Subscription",
    "SyncMethod",
    "Unchanged",
    "Watch",
    "untold",
]
