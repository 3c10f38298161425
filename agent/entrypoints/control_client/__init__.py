"""Client of the running agent's control socket: status, events, and sync requests.

If an agent is absent, outdated, broken or hanging, the client raises `AgentUnavailable` within three seconds; callers
then use the ledger and notes in the spool. httpx2 is imported only if the socket exists.
"""

from agent.entrypoints.control_client.endpoint import Endpoint
from agent.entrypoints.control_client.history import POLL_SECONDS, follow_history, read_history

__all__ = ["POLL_SECONDS", "Endpoint", "follow_history", "read_history"]
