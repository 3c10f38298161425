"""Checks of the settings and their sources, and of Session-Buddy's own sync."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.entrypoints.doctor.context import DoctorContext, in_thread
from agent.entrypoints.doctor.findings import Finding, error, ok, skipped, warning
from agent.settings import variable
from agent.settings.yaml_file import expand, read_settings_file

NAME = "settings"
BUILT_IN = "Session-Buddy's own sync"
TABLE = "akosha-agent config shows every setting and where it comes from"

_STATE_FILE = "akosha_sync_state.json"
_RECENT_SECONDS = 7 * 24 * 3600
_ON, _BUCKET = "upload_on_session_end", "cloud_bucket"
_ITS_FILES = (
    ("./settings/local.yaml", False),
    ("./settings/session-buddy.yaml", False),
    ("~/.config/session-buddy/local.yaml", True),
    ("~/.config/session-buddy/config.yaml", True),
)
"""The files that the running Session-Buddy reads, highest priority first; whether a file is below the home."""

_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})


async def sources(context: DoctorContext) -> list[Finding]:
    """A wrong value or file is an error; a key that is no setting, or has no effect, is a warning."""
    if context.settings_error is not None:
        cure = context.settings_error.hint or "correct it there; the agent does not start until then"
        return [error(NAME, line, cure=cure) for line in context.settings_error.message.splitlines()]
    found = [warning(NAME, text, cure=TABLE) for text in context.warnings]
    counted = Counter("the environment" if o.startswith("env ") else o for o in context.origins.values())
    counted.pop("default", None)
    places = ", ".join(f"{place} ({count})" for place, count in sorted(counted.items()))
    text = f"{counted.total()} set: {places}" if counted else "none is set: all have their defaults"
    return [ok(NAME, text), *found]


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """A value and its source."""

    value: object
    origin: str


async def built_in_sync(context: DoctorContext) -> list[Finding]:
    """Warn of Session-Buddy's own sync: it has the same keys, is on by default, and uploads if it has a bucket.

    It reads other files than the agent, so it can be switched off alone.
    """
    try:
        values = await in_thread(lambda: dict(_values_of(context, (_ON, _BUCKET))))
        ran = await in_thread(lambda: _last_run(context.settings.agent_data_dir / _STATE_FILE))
    except SettingsError as unread:
        return [skipped(BUILT_IN, f"what it reads cannot be read: {unread.message}")]
    on, bucket = values.get(_ON), values.get(_BUCKET)
    if on is not None and (on.value is False or str(on.value).strip().lower() in _FALSE):
        return [ok(BUILT_IN, f"switched off ({on.origin})")]
    if not (bucket and str(bucket.value).strip()) and not ran:
        return [ok(BUILT_IN, "it has no bucket to upload to, and left no trace")]
    reasons = [f"{bucket.origin} gives it a bucket"] if bucket and str(bucket.value).strip() else []
    reasons += [f"it ran at {ran}"] if ran else []
    take_away = f"take akosha_{_ON} out of {on.origin}, then " if on and not on.origin.startswith("~") else ""
    return [
        warning(
            BUILT_IN,
            f"it is on beside this agent: {' and '.join(reasons)}",
            cure=f"{take_away}write akosha_{_ON}: false into ~/.config/session-buddy/local.yaml, which it reads, and "
            f"akosha_{_ON}: true into ~/.claude/settings/local.yaml, which only this agent reads",
        )
    ]


def _values_of(context: DoctorContext, keys: tuple[str, ...]) -> Iterator[tuple[str, SourcedValue]]:
    """Yield each key with the value that Session-Buddy takes, the lowest source first. Raises SettingsError."""
    for name, at_home in reversed(_ITS_FILES):
        path = (context.user_home / name[2:]) if at_home else (context.cwd / name[2:])
        values = _values(path, name, keys)
        for key in keys:
            if values.get(key) is not None:
                value = values[key]
                yield key, SourcedValue(expand(value, context.environ).text if isinstance(value, str) else value, name)
    for key in keys:
        if found := context.environ.get(variable(key)):
            yield key, SourcedValue(found, f"env {variable(key)}")


def _values(path: Path, name: str, keys: tuple[str, ...]) -> Mapping[str, object]:
    wanted = {f"akosha_{key}": key for key in keys}
    file = read_settings_file(path, name=name, wanted=wanted.__contains__)
    return {} if file is None else {wanted[key]: value for key, value in file.values.items()}


def _last_run(path: Path) -> str:
    """Return when the built-in sync wrote its state last, "" where that is long ago, or never."""
    try:
        at = path.stat().st_mtime
    except OSError:
        return ""
    return (
        f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}" if time.time() - at < _RECENT_SECONDS else ""
    )
