"""The protocols that the application uses, with their promises. `tests/contracts` tests every adapter against them."""

from agent.ports.bus import BusState, Codec, EventBus, Handler, Message, Responder, StreamMark, Subscription
from agent.ports.ledger import HistoryEntry, Ledger
from agent.ports.memories import (
    Capabilities,
    DatabaseSource,
    HeldMemory,
    MemoriesDraft,
    MemoriesFile,
    MemoryCounts,
    MemoryLedger,
    MemoryReader,
    MemorySink,
    MemorySource,
    PackedMemory,
    RowDifference,
    StoreResult,
    WrittenMemories,
)
from agent.ports.methods import Delivered, Reporter, SyncMethod, Unchanged
from agent.ports.metrics import Meter, NoMeter
from agent.ports.network import Connected, NetworkChange, NetworkMonitor, Reconnectable, reset_clients
from agent.ports.objects import (
    Creation,
    ObjectStore,
    OpenPut,
    Progress,
    PutJournal,
    PutPart,
    StoredObject,
    ignore_progress,
    is_changed,
)
from agent.ports.patches import Patcher, WrittenPatch
from agent.ports.rate_limit import RateLimiter
from agent.ports.snapshots import Compressor, Mirror, Snapshot, SnapshotTaker
from agent.ports.system import Clock, Spool, Supervisor, Watch
from agent.ports.unexpected_errors import UnexpectedErrors

__all__ = [
    "BusState",
    "Capabilities",
    "Clock",
    "Codec",
    "Compressor",
    "Connected",
    "Creation",
    "DatabaseSource",
    "Delivered",
    "EventBus",
    "Handler",
    "HeldMemory",
    "HistoryEntry",
    "Ledger",
    "MemoriesDraft",
    "MemoriesFile",
    "MemoryCounts",
    "MemoryLedger",
    "MemoryReader",
    "MemorySink",
    "MemorySource",
    "Message",
    "Meter",
    "Mirror",
    "NetworkChange",
    "NetworkMonitor",
    "NoMeter",
    "ObjectStore",
    "OpenPut",
    "PackedMemory",
    "Patcher",
    "Progress",
    "PutJournal",
    "PutPart",
    "RateLimiter",
    "Reconnectable",
    "Reporter",
    "Responder",
    "RowDifference",
    "Snapshot",
    "SnapshotTaker",
    "Spool",
    "StoreResult",
    "StoredObject",
    "StreamMark",
    "Subscription",
    "Supervisor",
    "SyncMethod",
    "Unchanged",
    "UnexpectedErrors",
    "Watch",
    "WrittenMemories",
    "WrittenPatch",
    "ignore_progress",
    "is_changed",
    "reset_clients",
]
