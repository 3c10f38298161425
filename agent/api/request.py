"""What the process of its own is asked for. It goes there on stdin, as JSON: no secret is in it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from agent.api.config import AkoshaSyncConfig

if TYPE_CHECKING:
    from agent.settings import Loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sync by one method (`cloud`, `http`). Directories that are None are those of the agent's own settings."""

    config: AkoshaSyncConfig
    method: str
    upload_reflections: bool = True
    upload_knowledge_graph: bool = True
    data_dir: str | None = None
    state_dir: str | None = None

    def encode(self) -> bytes:
        """Return it as JSON."""
        document = {name: getattr(self, name) for name in self.__slots__ if name != "config"}
        return json.dumps(document | {"config": self.config.values()}, default=str).encode()

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Return what `encode` wrote."""
        document = json.loads(text)
        return cls(**document | {"config": AkoshaSyncConfig(**document["config"])})

    def load(self) -> "Loaded":
        """Return the settings that an agent has here, with these 13 in the place of whatever is set elsewhere.

        An empty system id means the agent's: it takes the place of nothing. Raises SettingsError.
        """
        from agent.settings import load  # noqa: PLC0415 - 0.3 s, for those who need it

        directories = {"agent_data_dir": self.data_dir, "agent_state_dir": self.state_dir}
        return load(
            command_line={**self.config.values(), "system_id": self.config.system_id or None, **directories},
            environ=os.environ,
            cwd=Path.cwd(),
            home=Path.home(),
        )
