"""What is said about a value that is wrong: its key, the value (masked if secret), where it stands, what is allowed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import SecretStr, ValidationError

from agent.domain.plain_text import MASK
from agent.settings.endpoints import without_credentials
from agent.settings.model import ADDRESSES, FIELDS, PATHS, PREFIX, SECRET
from agent.settings.sources import Given, nearest
from agent.settings.validators import EarlierFieldError

LONGEST = 200


def complaints(error: ValidationError, given: Mapping[str, Given]) -> Iterator[str]:
    """Yield one line for each wrong key of a failed validation."""
    for detail in error.errors(include_url=False):
        reason = detail.get("ctx", {}).get("error")
        key = reason.key if isinstance(reason, EarlierFieldError) else str(detail["loc"][0])
        found = given[key]
        if key not in FIELDS:
            yield f"{PREFIX}{key} ({found.origin}) is not a setting{nearest(key, list(FIELDS))}"
            continue
        why = str(reason) if isinstance(reason, ValueError) else f"allowed is {allowed(key)}"
        yield f"{PREFIX}{key} is {quoted(key, found.written)} ({found.origin}): {why}"


def shown(key: str, value: object) -> str:
    """Return a value as people may see it: secrets and credentials in addresses masked, booleans as YAML has them."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None:
        return ""
    if key in SECRET:
        return MASK if value != "" else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a mapping"
    return without_credentials(str(value)) if key in ADDRESSES else str(value)


def quoted(key: str, value: object) -> str:
    """Return a value for a message: on one line, of bounded length, a text in quotes."""
    text = shown(key, value)
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}..."
    return repr(text) if isinstance(value, (str, Path, SecretStr)) else text


def allowed(key: str) -> str:
    """Return in words what a key takes, as its type and bounds say."""
    field = FIELDS[key]
    kind = field.annotation
    if get_origin(kind) is Literal:
        *most, last = get_args(kind)
        return f"{', '.join(most)} or {last}"
    if kind is bool:
        return "true or false"
    if kind in (int, float):
        bounds = {
            name: getattr(part, name) for part in field.metadata for name in ("ge", "gt", "le") if hasattr(part, name)
        }
        low = f"from {bounds['ge']:g} to" if "ge" in bounds else f"above {bounds['gt']:g}, up to"
        return f"a {'whole ' if kind is int else ''}number {low} {bounds['le']:g}"
    if key in PATHS:
        return "the path of a directory" if kind is Path else "the path of a file"
    return "a text (in quotes, where YAML would take it for something else)"
