"""The settings as a table: for `akosha-agent config`, and for the README."""

from dataclasses import dataclass

from pydantic.fields import FieldInfo

from agent.settings.error_messages import shown
from agent.settings.loading import Loaded
from agent.settings.model import FIELDS, PREFIX


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: its key as in a file, its value (secrets masked), where that is from, its default, what it does."""

    key: str
    value: str
    origin: str
    default: str
    description: str


def settings_table(loaded: Loaded) -> list[Row]:
    """Return all settings, in the order of the tree."""
    return [
        Row(
            key=PREFIX + key,
            value=shown(key, getattr(loaded.settings, key)),
            origin=loaded.origins[key],
            default=_default(key, field),
            description=field.description or "",
        )
        for key, field in FIELDS.items()
    ]


def _default(key: str, field: FieldInfo) -> str:
    # Defaults that depend on the machine say so in words.
    extra = field.json_schema_extra
    return str(extra["shown_default"]) if isinstance(extra, dict) else shown(key, field.default)
