"""Who this agent is, kept in `identity.json`: made once, whole or not at all, and never again silently."""

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


class IdentityFile:
    """The identity kept in the state directory `directory`. Processes that start at the same time agree on one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file = directory / "identity.json"

    def identity(self, host_name: str, system_id_setting: str) -> Identity:
        """Return the identity; make and keep it first where there is none.

        The system id is the setting, sanitised. Without one it is the host name as it was at the first start: host
        names of laptops roam. Raises NamingError where neither can be made into one, StateError for a damaged file.
        """
        chosen = sanitise_system_id(system_id_setting) if system_id_setting else None
        try:
            agent_id, kept = self._agreed(host_name, optional=chosen is not None)
        except OSError as error:
            raise unusable(self._directory, error) from error
        return Identity(agent_id=agent_id, system_id=chosen or kept, is_default=chosen is None)

    def rename(self, system_id: str) -> None:
        """Keep another default system id. Raises StateError."""
        try:
            with fs.locked(self._directory / "identity.lock"):
                kept = self._kept()
                self._keep(kept[0] if kept else secrets.token_hex(16), check_system_id(system_id))
        except OSError as error:
            raise unusable(self._directory, error) from error

    def _agreed(self, host_name: str, *, optional: bool) -> tuple[str, str]:
        """Return (agent id, system id) as kept from now on; the latter is "" where it is optional and cannot be."""
        with fs.locked(self._directory / "identity.lock"):
            agent_id, system_id = self._kept() or (secrets.token_hex(16), "")
            if not system_id:
                try:
                    system_id = sanitise_system_id(host_name)
                except NamingError:
                    if not optional:
                        raise
                self._keep(agent_id, system_id)
            return agent_id, system_id

    def _kept(self) -> tuple[str, str] | None:
        """Return what the file holds, None where there is none. Raises StateError where it is damaged."""
        try:
            kept = orjson.loads(self._file.read_bytes())
            agent_id, system_id = kept["agent_id"], kept["system_id"]
            if not _AGENT_ID.fullmatch(agent_id):
                raise ValueError("agent_id is not one")
            return agent_id, system_id and check_system_id(system_id)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(
                f"{self._file} is damaged: {error!r}",
                hint="restore it from a backup; or delete it, and the agent takes a new id and the present host name, "
                "unless akosha_system_id is set to the system id it had",
            ) from error

    def _keep(self, agent_id: str, system_id: str) -> None:
        """Write the file durably, all or nothing. The caller holds the lock."""
        text = orjson.dumps({"agent_id": agent_id, "system_id": system_id}, option=orjson.OPT_APPEND_NEWLINE)
        fs.write_atomically(self._file, text, sole_writer=True)
