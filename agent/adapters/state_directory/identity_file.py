"""The agent's identity, stored in `identity.json`. It is created once, atomically; a damaged one is not replaced."""

import re
import secrets
from pathlib import Path

import orjson

from agent.adapters import fs
from agent.adapters.state_directory.lock import unusable
from agent.domain.errors import NamingError, StateError
from agent.domain.identity import Identity
from agent.domain.naming import check_system_id, sanitise_system_id

_AGENT_ID = re.compile(r"[0-9a-f]{16,64}")


def belongs_to(directory: str, agent_id: str) -> bool:
    """Return whether the state directory belongs to this agent. Blocks.

    True as well if the file is there and cannot be read: its agent may be running.
    """
    try:
        return bool(orjson.loads((Path(directory) / "identity.json").read_bytes())["agent_id"] == agent_id)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    except (ValueError, KeyError, TypeError):
        return False  # damaged: no agent can start with it


class IdentityFile:
    """The identity file of a state directory. Processes that start at the same time get the same identity."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "identity.json"

    def identity(self, host_name: str, system_id_setting: str) -> Identity:
        """Return the identity; create and store it if it does not exist.

        The system ID is the sanitised setting. Without one it is the host name at the first start, because host names
        of laptops change. Raises NamingError if it cannot be sanitised, StateError if the file is damaged.
        """
        chosen = sanitise_system_id(system_id_setting) if system_id_setting else None
        try:
            agent_id, stored = self._load_or_create(host_name, optional=chosen is not None)
        except OSError as error:
            raise unusable(self._directory, error) from error
        return Identity(agent_id=agent_id, system_id=chosen or stored, is_default=chosen is None)

    def rename(self, system_id: str) -> None:
        """Store another default system ID. Raises StateError."""
        try:
            with fs.locked(self._directory / "identity.lock"):
                stored = self._load()
                self._store(stored[0] if stored else secrets.token_hex(16), check_system_id(system_id))
        except OSError as error:
            raise unusable(self._directory, error) from error

    def _load_or_create(self, host_name: str, *, optional: bool) -> tuple[str, str]:
        """Return the stored (agent ID, system ID).

        If the system ID is `optional` and the host name cannot be sanitised, it is "".
        """
        with fs.locked(self._directory / "identity.lock"):
            agent_id, system_id = self._load() or (secrets.token_hex(16), "")
            if not system_id:
                try:
                    system_id = sanitise_system_id(host_name)
                except NamingError:
                    if not optional:
                        raise
                self._store(agent_id, system_id)
            return agent_id, system_id

    def _load(self) -> tuple[str, str] | None:
        """Return the stored (agent ID, system ID), None if the file does not exist. Raises StateError if damaged."""
        try:
            document = orjson.loads(self._file.read_bytes())
            agent_id, system_id = document["agent_id"], document["system_id"]
            if not _AGENT_ID.fullmatch(agent_id):
                raise ValueError("agent_id is not 16 to 64 hexadecimal digits")
            return agent_id, system_id and check_system_id(system_id)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self._file} is damaged: {error!r}",
                hint="restore it from a backup; or delete it: the agent then creates a new agent ID, and uses the "
                "host name as its system ID unless akosha_system_id is set to the old system ID",
            ) from error

    def _store(self, agent_id: str, system_id: str) -> None:
        """Write the file atomically. The caller holds the lock."""
        text = orjson.dumps({"agent_id": agent_id, "system_id": system_id}, option=orjson.OPT_APPEND_NEWLINE)
        fs.write_atomically(self._file, text, sole_writer=True)
