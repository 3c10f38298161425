"""Are the settings right, and where do they come from? Does Session-Buddy sync beside us?"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.bootstrap.doctor import aside
from agent.domain.errors import SettingsError
from agent.entrypoints.doctor.context import CheckContext
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
"""What the running Session-Buddy reads, the highest first; whether a file is below the home."""

_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})


async def sources(ground: CheckContext) -> list[Finding]:
    """What is wrong with a value, or with a file, is an error; what is no setting, or has no effect, a warning."""
    if ground.trouble is not None:
        cure = ground.trouble.hint or "correct it in the place that is named there; the agent does not start until then"
        return [error(NAME, line, cure=cure) for line in ground.trouble.message.splitlines()]
    found = [warning(NAME, text, cure=TABLE) for text in ground.warnings]
    counted = Counter("the environment" if o.startswith("env ") else o for o in ground.origins.values())
    counted.pop("default", None)
    places = ", ".join(f"{place} ({count})" for place, count in sorted(counted.items()))
    told = f"{counted.total()} set: {places}" if counted else "none is set: all have their defaults"
    return [ok(NAME, told), *found]


@dataclass(frozen=True, slots=True)
class Said:
    """A value and who says so."""

    value: object
    origin: str


async def built_in_sync(ground: CheckContext) -> list[Finding]:
    """Session-Buddy's own sync has the same keys, and is on by default; with a bucket it uploads beside us.

    It reads other files than we do, so it can be switched off alone.
    """
    try:
        said = await aside(lambda: dict(_said(ground, (_ON, _BUCKET))))
        ran = await aside(lambda: _last_run(ground.settings.agent_data_dir / _STATE_FILE))
    except SettingsError as unread:
        return [skipped(BUILT_IN, f"what it reads cannot be read: {unread.message}")]
    on, bucket = said.get(_ON), said.get(_BUCKET)
    if on is not None and (on.value is False or str(on.value).strip().lower() in _FALSE):
        return [ok(BUILT_IN, f"switched off ({on.origin})")]
    if not (bucket and str(bucket.value).strip()) and not ran:
        return [ok(BUILT_IN, "it has no bucket to upload to, and left no trace")]
    why = [f"{bucket.origin} gives it a bucket"] if bucket and str(bucket.value).strip() else []
    why += [f"it ran at {ran}"] if ran else []
    take_away = f"take akosha_{_ON} out of {on.origin}, then " if on and not on.origin.startswith("~") else ""
    return [
        warning(
            BUILT_IN,
            f"it is on beside this agent: {' and '.join(why)}",
            cure=f"{take_away}write akosha_{_ON}: false into ~/.config/session-buddy/local.yaml, which it reads, and "
            f"akosha_{_ON}: true into ~/.claude/settings/local.yaml, which only this agent reads",
        )
    ]


def _said(ground: CheckContext, keys: tuple[str, ...]) -> Iterator[tuple[str, Said]]:
    """Yield each key with the value that Session-Buddy takes, the lowest source first. Raises SettingsError."""
    for name, at_home in reversed(_ITS_FILES):
        path = (ground.home / name[2:]) if at_home else (ground.cwd / name[2:])
        values = _values(path, name, keys)
        for key in keys:
            if values.get(key) is not None:
                value = values[key]
                yield key, Said(expand(value, ground.environ).text if isinstance(value, str) else value, name)
    for key in keys:
        if found := ground.environ.get(variable(key)):
            yield key, Said(found, f"env {variable(key)}")


def _values(path: Path, name: str, keys: tuple[str, ...]) -> Mapping[str, object]:
    wanted = {f"akosha_{key}": key for key in keys}
    file = read_settings_file(path, name=name, wanted=wanted.__contains__)
    return {} if file is None else {wanted[key]: value for key, value in file.values.items()}


def _last_run(path: Path) -> str:
    """Return when the built-in sync kept its state, "" where that is long ago, or never."""
    try:
        at = path.stat().st_mtime
    except OSError:
        return ""
    return (
        f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M}" if time.time() - at < _RECENT_SECONDS else ""
    )
