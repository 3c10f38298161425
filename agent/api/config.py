"""The 13 documented settings as one value. `agent.settings`, which validates them, is imported only when needed."""

import os
import socket
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from agent.domain.errors import AkoshaError
from agent.domain.naming import check_system_id, sanitise_system_id
from agent.domain.parsing import parse_json

PREFIX = "akosha_"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class AkoshaSyncConfig:
    """The settings of a sync. The constructor accepts any values; `validate` returns the errors.

    Strings are stripped. A `cloud_endpoint` of `file:///dir` is a directory, which needs no bucket; without a bucket,
    an endpoint that ends in `/mcp` is the address of the Akosha server.
    """

    cloud_bucket: str = ""
    cloud_endpoint: str = ""
    cloud_region: str = "auto"
    system_id: str = ""
    upload_on_session_end: bool = True
    enable_fallback: bool = True
    force_method: str = "auto"
    upload_timeout_seconds: int = 300
    max_retries: int = 3
    retry_backoff_seconds: float = 2.0
    enable_compression: bool = True
    enable_deduplication: bool = True
    chunk_size_mb: int = 5

    def __post_init__(self) -> None:
        for name, value in self.values().items():
            if isinstance(value, str):
                text = value.strip()
                object.__setattr__(self, name, text.lower() if name == "force_method" else text)

    @classmethod
    def from_settings(cls, settings: object) -> Self:
        """Read the attributes `akosha_cloud_bucket` and so on from any object; use defaults for those missing or None.

        Values are not checked; use `validate`.
        """
        given = {field.name: getattr(settings, PREFIX + field.name, None) for field in fields(cls)}
        # An object's attributes may have any type.
        known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return cls(**known)

    def values(self) -> dict[str, object]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def validate(self) -> list[str]:
        """Return one sentence per invalid setting: its name, its value, and the allowed values."""
        from pydantic import ValidationError  # noqa: PLC0415 - these imports take 0.3 s

        from agent.settings import Settings  # noqa: PLC0415
        from agent.settings.display import validation_messages  # noqa: PLC0415
        from agent.settings.sources import SourcedValue  # noqa: PLC0415

        values = self.values()
        try:
            Settings.model_validate(values)
        except ValidationError as error:
            return list(
                validation_messages(
                    error, {name: SourcedValue(value, type(self).__name__, value) for name, value in values.items()}
                )
            )
        return []

    @property
    def cloud_configured(self) -> bool:
        """Whether the cloud method has a target: a bucket or a directory."""
        from agent.settings.endpoints import is_directory  # noqa: PLC0415 - as above

        return bool(self.cloud_bucket) or is_directory(self.cloud_endpoint)

    @property
    def system_id_resolved(self) -> str:
        """The name of this machine in the bucket, as an agent on this machine uses it.

        It is the field `system_id`; else the ID of this user's agent, from its setting or its first start; else the
        host name. It consists of letters, digits, - and _. Raises NamingError (a ValueError) if the name has none of
        these.
        """
        return sanitise_system_id(self.system_id or _agents_system_id() or socket.gethostname())

    @property
    def should_use_cloud(self) -> bool:
        """Whether the cloud is configured and http is not forced."""
        return self.cloud_configured and self.force_method != "http"

    @property
    def should_use_http(self) -> bool:
        """Whether http is forced, or is the fallback or only method while the cloud is not forced."""
        return self.force_method == "http" or (
            self.force_method != "cloud" and (self.enable_fallback or not self.cloud_configured)
        )


def _agents_system_id() -> str:
    """Return the system ID of this user's agent; "" if no agent has run, or its file is damaged."""
    from agent.bootstrap.home import Home  # noqa: PLC0415
    from agent.settings import load  # noqa: PLC0415 - as above

    try:
        home = Home.of(load(environ=os.environ, cwd=Path.cwd(), home=Path.home()).settings).with_agent_system_id()
        if home.settings.system_id:
            return home.settings.system_id
        system_id = parse_json((home.state.path / "identity.json").read_bytes())["system_id"]
        return check_system_id(system_id) if system_id else ""
    except (AkoshaError, OSError, ValueError, KeyError, TypeError):
        return ""  # an agent reports the error when it starts
