"""What the core asks of the world, as promises. Adapters keep them; `tests/contracts` holds every adapter to them."""

from agent.ports.bus import EventBus, Handler, Message, Subscription
from agent.ports.clock import Clock
from agent.ports.inputs import Spool, Watch
from agent.ports.ledger import HistoryEntry, Ledger
from agent.ports.methods import Delivered, Reporter, SyncMethod, Unchanged
from agent.ports.objects import ObjectStore, Progress, StoredObject, untold
from agent.ports.snapshots import Compressor, Snapshot, SnapshotTaker

__all__ = [
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
    "Snapshot",
    "SnapshotTaker",
    "Spool",
    "StoredObject",
    "Subscription",
    "SyncMethod",
    "Unchanged",
    "Watch",
    "untold",
]
