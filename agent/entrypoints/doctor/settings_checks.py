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
TABLE = "akosha-agent config shows the settings that are set and their sources"

_STATE_FILE = "akosha_sync_state.json"
_RECENT_SECONDS = 7 * 24 * 3600
_ON, _BUCKET = "upload_on_session_end", "cloud_bucket"
_ITS_FILES = (
    ("./settings/local.yaml", False),
    ("./settings/session-buddy.yaml", False),
    ("~/.config/session-buddy/local.yaml", True),
    ("~/.config/session-buddy/config.yaml", True),
)
"""The files that a running Session-Buddy reads, highest priority first, and whether a file is in the home directory."""

_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})


async def sources(context: DoctorContext) -> list[Finding]:
    """Report invalid values and files as errors, unknown settings and settings without effect as warnings."""
    if context.settings_error is not None:
        hint = context.settings_error.hint or "correct it; the agent does not start until then"
        return [error(NAME, line, hint=hint) for line in context.settings_error.message.splitlines()]
    found = [warning(NAME, text, hint=TABLE) for text in context.warnings]
    counted = Counter("the environment" if o.startswith("env ") else o for o in context.origins.values())
    counted.pop("default", None)
    origins = ", ".join(f"{origin} ({count})" for origin, count in sorted(counted.items()))
    text = f"{counted.total()} set, from {origins}" if counted else "none is set: all have their defaults"
    return [ok(NAME, text), *found]


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """A value and its source."""

    value: object
    origin: str


async def built_in_sync(context: DoctorContext) -> list[Finding]:
    """Warn about Session-Buddy's own sync, which uses the same keys, is on by default, and uploads if it has a bucket.

    It reads different files from the agent's, so it can be switched off separately.
    """
    try:
        values = await in_thread(lambda: dict(_values_of(context, (_ON, _BUCKET))))
        ran = await in_thread(lambda: _last_run(context.settings.agent_data_dir / _STATE_FILE))
    except SettingsError as problem:
        return [skipped(BUILT_IN, f"its settings cannot be read: {problem.message}")]
    on, bucket = values.get(_ON), values.get(_BUCKET)
    if on is not None and (on.value is False or str(on.value).strip().lower() in _FALSE):
        return [ok(BUILT_IN, f"switched off ({on.origin})")]
    if not (bucket and str(bucket.value).strip()) and not ran:
        return [ok(BUILT_IN, "it has no bucket, and has not run in the last 7 days")]
    reasons = [f"{bucket.origin} sets a bucket"] if bucket and str(bucket.value).strip() else []
    reasons += [f"it ran at {ran}"] if ran else []
    remove = f"remove akosha_{_ON} from {on.origin}, then " if on and not on.origin.startswith("~") else ""
    return [
        warning(
            BUILT_IN,
            f"it is on, in addition to this agent: {' and '.join(reasons)}",
            hint=f"{remove}set akosha_{_ON}: false in ~/.config/session-buddy/local.yaml, which both read; then "
            f"akosha-agent config set {_ON} true, which only this agent reads",
        )
    ]


def _values_of(context: DoctorContext, keys: tuple[str, ...]) -> Iterator[tuple[str, SourcedValue]]:
    """Yield each key with the values that Session-Buddy reads, lowest priority first. Raises SettingsError."""
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
    """Return when the built-in sync last wrote its state; "" if not in the last 7 days."""
    try:
        at = path.stat().st_mtime
    except OSError:
        return ""
    return (
        f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}" if time.time() - at < _RECENT_SECONDS else ""
    )
