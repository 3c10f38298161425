"""The one settings tree: frozen, flat, valid once built. A field's name is its key without `akosha_`.

Its fields come in parts, a room for each: `delivery`, `watching`, `nats`, `keeping`, `control`; here is what all
have in common.

`Settings(...)` takes what it is given and defaults, and reads nothing; `load` fills it from all sources. Whatever the
source, a value meets the same rules here.
"""

from contextvars import ContextVar
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from agent.settings.control import Control
from agent.settings.delivery import Delivery
from agent.settings.nats import Nats
from agent.settings.retention import Keeping
from agent.settings.triggers import Watching

PREFIX = "akosha_"

SECRET = frozenset(
    {"http_token", "agent_http_token", "agent_nats_password", "agent_nats_token", "agent_nats_nkey_seed"}
)
"""Keys whose values are never shown."""

ADDRESSES = frozenset({"cloud_endpoint", "http_endpoint", "agent_nats_url"})
"""Keys whose values may have credentials in them; those are not shown."""

PROJECT_KEYS = frozenset({"agent_log_level", "chunk_size_mb", "max_retries", "retry_backoff_seconds"})
"""The only keys that an unnamed ./settings file sets, besides Session-Buddy's log_level and enable_debug_mode.

Anybody may have written that file: a cloned repository must not decide where memories go, which are kept, or who reads
them. A key that is not listed here is ignored, so a new setting is safe until somebody decides otherwise.
"""

SOURCES: ContextVar[tuple[PydanticBaseSettingsSource, ...]] = ContextVar("settings_sources", default=())
"""Where a `Settings()` built now takes its values from, the highest first, besides its arguments."""


class Settings(
    Control, Keeping, Nats, Watching, Delivery, BaseSettings
):  # pydantic lays fields out from the last of these to the first
    """Everything a user can set. Raises pydantic's ValidationError; `load` makes that a SettingsError with sources."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        str_strip_whitespace=True,
        validate_default=True,  # the rules among keys count on it
        title="akosha-agent",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the names are pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, *SOURCES.get())


FIELDS: dict[str, FieldInfo] = Settings.model_fields
"""The keys, in the order of the table."""

TEXTS = frozenset(name for name, field in FIELDS.items() if field.annotation in (str, SecretStr, Path | None))
"""Keys for which an empty text is a value (of a path: none); for the others it means: not set."""

PATHS = frozenset(name for name, field in FIELDS.items() if field.annotation in (Path, Path | None))
