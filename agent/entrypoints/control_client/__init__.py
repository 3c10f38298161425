"""Client of the running agent's control socket: status, events, and requests of a sync.

Callers have another way, too: the ledger, and notes in the spool. So an agent that is absent, old, broken or hanging is
`AgentUnavailable`, after three seconds at most. httpx2 is loaded only where there is a socket.
"""

from agent.entrypoints.control_client.endpoint import Endpoint
from agent.entrypoints.control_client.history import POLL_SECONDS, follow_history, read_history

__all__ = ["POLL_SECONDS", "Endpoint", "follow_history", "read_history"]
