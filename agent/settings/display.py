"""Settings as text: the table for `akosha-agent config` and the documentation, and messages about invalid values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from agent.domain.plain_text import MASK
from agent.settings.endpoints import without_credentials
from agent.settings.model import ADDRESSES, FIELDS, PATHS, SECRET, Loaded
from agent.settings.sources import SourcedValue, nearest
from agent.settings.validators import PREFIX, EarlierFieldError
from agent.settings.webhooks import ALLOWED, KEY as WEBHOOKS, shown_webhooks, webhook_problem

MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One setting: its key as in a file, value (secrets masked), source, default and description."""

    key: str
    value: str
    origin: str
    default: str
    description: str


def settings_table(loaded: Loaded) -> list[Row]:
    """Return all settings, in the order of the model."""
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
    # Defaults that depend on the machine are described in words.
    extra = field.json_schema_extra
    return str(extra["shown_default"]) if isinstance(extra, dict) else shown(key, field.default)


def validation_messages(error: ValidationError, given: Mapping[str, SourcedValue]) -> Iterator[str]:
    """Yield a line for each invalid setting: key, value (secrets masked), source, and the allowed values.

    No line is repeated: pydantic reports a list with one wrong element twice, the element and the length.
    """
    yield from dict.fromkeys(_messages(error, given))


def _messages(error: ValidationError, given: Mapping[str, SourcedValue]) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        reason = detail.get("ctx", {}).get("error")
        key = reason.key if isinstance(reason, EarlierFieldError) else str(detail["loc"][0])
        found = given[key]
        if key not in FIELDS:
            yield f"{PREFIX}{key} ({found.origin}) is not a setting{nearest(key, list(FIELDS))}"
            continue
        problem = str(reason) if isinstance(reason, ValueError) else f"must be {allowed(key)}"
        if inner := detail["loc"][1:]:
            problem = webhook_problem(inner, detail["type"], reason)
        yield f"{PREFIX}{key} is {quoted(key, found.written)} ({found.origin}): {problem}"


def shown(key: str, value: object) -> str:
    """Return a value as text: secrets and credentials in URLs masked, booleans as in YAML."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return ""
    if key in SECRET:
        return MASK if value != "" else ""
    if key == WEBHOOKS:
        return shown_webhooks(value) if isinstance(value, tuple) else MASK
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return without_credentials(str(value)) if key in ADDRESSES else str(value)


def quoted(key: str, value: object) -> str:
    """Return a value for a message: one line of bounded length, texts in quotes."""
    text = shown(key, value)
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]}..."
    return repr(text) if isinstance(value, (str, Path, SecretStr)) else text


def allowed(key: str) -> str:
    """Return a description of the values that a key accepts, from its type and bounds."""
    field = FIELDS[key]
    kind = field.annotation
    if key == WEBHOOKS:
        return ALLOWED
    if get_origin(kind) is Literal:
        *most, last = (value or "empty" for value in get_args(kind))
        return f"{', '.join(most)} or {last}"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        bounds = {
            name: getattr(part, name) for part in field.metadata for name in ("ge", "gt", "le") if hasattr(part, name)
        }
        low = f"from {bounds['ge']:.12g} to" if "ge" in bounds else f"above {bounds['gt']:.12g}, up to"
        return f"a {'whole ' if kind is int else ''}number {low} {bounds['le']:.12g}"
    if key in PATHS:
        return "the path of a directory" if kind is Path else "the path of a file"
    return "a text (quote it if YAML reads it as another type)"
