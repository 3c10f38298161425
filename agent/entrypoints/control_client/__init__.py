"""The running agent, asked over its control socket: how it stands, what happens, and for a sync.

Whoever asks has another way, too: the ledger, and notes in the spool. So no agent, an old one, a broken or a wedged one
is nothing that fails: it is `NoAnswer`, in three seconds at most. httpx2 is loaded where there is a socket, not before.
"""

from agent.entrypoints.control_client.endpoint import Endpoint, NoAnswer
from agent.entrypoints.control_client.live_history import LOOK_SECONDS, follow, written

__all__ = ["LOOK_SECONDS", "Endpoint", "NoAnswer", "follow", "written"]
