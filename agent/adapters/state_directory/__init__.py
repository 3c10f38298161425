"""The agent's state directory.

directory       `StateDirectory`: its files, and their modes
lock            the lock of the one process that runs
identity_file   identity.json: agent ID and system ID
"""

from agent.adapters.state_directory.directory import StateDirectory
from agent.adapters.state_directory.identity_file import belongs_to
from agent.adapters.state_directory.lock import Holder, is_suspended

__all__ = ["Holder", "StateDirectory", "belongs_to", "is_suspended"]
