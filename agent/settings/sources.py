"""The layers that settings come from: each says, key by key, what is given and where it stands."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from agent.settings.endpoints import without_credentials
from agent.settings.model import ADDRESSES, FIELDS, PATHS, PREFIX, SECRET, TEXTS, Settings

LONGEST_KEY = 60
COMMAND_LINE = "command line"

SESSION_BUDDY = ("enable_debug_mode", "log_level")
"""Session-Buddy's own keys that set our log level where nothing else does."""

DATA_DIR = "data_dir"
"""Session-Buddy's own key for the directory of its databases: the default of `agent_data_dir`."""

SHORT_VARIABLES = {
    "cloud_bucket": "AKOSHA_CLOUD_BUCKET",
    "cloud_endpoint": "AKOSHA_CLOUD_ENDPOINT",
    "cloud_region": "AKOSHA_CLOUD_REGION",
    "system_id": "AKOSHA_SYSTEM_ID",
    "enable_fallback": "AKOSHA_ENABLE_FALLBACK",
}
"""The variables of Session-Buddy's plan document, below those with its prefix."""

_STREAM = "for a stream that the agent creates; `nats stream edit AKOSHA_SYNC` changes an existing one"

REMOVED = {
    "http_batch_size": "500 memories",
    "agent_ingest_max_rows": "5,000,000 rows",
    "agent_ingest_max_mb": "8192 MiB",
    "agent_nats_connect_seconds": "5 s",
    "agent_nats_ping_seconds": "20 s",
    "agent_nats_ping_timeout_seconds": "10 s",
    "agent_nats_reconnect_seconds": "1 s",
    "agent_nats_reconnect_max_seconds": "30 s",
    "agent_nats_ack_wait_seconds": "60 s",
    "agent_nats_max_age_days": f"7 days, {_STREAM}",
    "agent_nats_max_mb": f"256 MiB, {_STREAM}",
    "agent_nats_duplicate_window_seconds": f"600 s, {_STREAM}",
    "agent_nats_inactive_days": "30 days",
}
"""Settings of earlier versions, with the value used instead. One that is still set causes a warning and no error."""


def variable(key: str) -> str:
    """Return the environment variable of a key: the agent's own keys have a prefix of their own."""
    return ("AKOSHA_" if key.startswith("agent_") else "SESSION_BUDDY_AKOSHA_") + key.upper()


@dataclass(frozen=True, slots=True)
class Given:
    """A value as a source gives it, where that is, and how the text read before variables were put in."""

    value: object = field(repr=False)
    origin: str
    written: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class SettingsContext:
    """The process's surroundings, which values may refer to."""

    environ: Mapping[str, str] = field(repr=False)
    cwd: Path
    home: Path

    def path(self, value: str | Path) -> Path:
        """Return a path as it is meant here: `~` is our home, a relative one starts at the working directory."""
        path = Path(value)
        if path.parts[:1] == ("~",):
            return self.home.joinpath(*path.parts[1:])
        # Another user's home (`~name`) is looked up where the path is validated.
        return path if str(path).startswith("~") else self.cwd / path

    def given(self, key: str, value: object, origin: str, *, written: object = None) -> Given | None:
        """Return the value made ready for its key, or None where it means: not set."""
        written = value if written is None else written
        if isinstance(value, str):
            value = value.strip()
            if not value and key not in TEXTS:
                return None
        if key in PATHS and isinstance(value, (str, Path)) and value != "":
            value = self.path(value)
        return None if value is None else Given(value, origin, written)


class _Address(str):
    """An address that shows no credentials where it is quoted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(without_credentials(self))


class Layer(PydanticBaseSettingsSource):
    """One source of settings, for pydantic-settings to merge."""

    def __init__(self, name: str, given: Mapping[str, Given | None]) -> None:
        super().__init__(Settings)
        self.__name__ = name  # what pydantic-settings calls a source when asked to log them
        self.given = {key: found for key, found in given.items() if found is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002 - its signature
        given = self.given.get(field_name)
        value = given.value if given else None
        # pydantic-settings can be told by a variable to log what its sources say.
        if isinstance(value, str) and field_name in SECRET | ADDRESSES:
            value = SecretStr(value) if field_name in SECRET else _Address(value)
        return value, field_name, False

    def __call__(self) -> dict[str, Any]:
        return {key: self.get_field_value(FIELDS[key], key)[0] if key in FIELDS else None for key in self.given}


def from_command_line(values: Mapping[str, object], place: SettingsContext) -> Layer:
    """Options of the command line, by field name; None is an option that was not used."""
    return Layer(COMMAND_LINE, {key: place.given(key, value, COMMAND_LINE) for key, value in values.items()})


def from_environment(names: Mapping[str, str], place: SettingsContext) -> Layer:
    """Environment variables; `names` is key -> variable."""
    found = {key: place.given(key, place.environ.get(name), f"env {name}") for key, name in names.items()}
    return Layer(f"env {next(iter(names.values()))} and its like", found)


def unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    """Yield a warning for every variable that looks like ours and is not."""
    known = {key.upper(): variable(key) for key in FIELDS}
    removed = {variable(key) for key in REMOVED}
    for name in sorted(environ):
        if name.startswith(("SESSION_BUDDY_AKOSHA_", "AKOSHA_AGENT_")) and name not in {*known.values(), *removed}:
            # The prefixes are long, and would make any two names alike.
            bare = name.removeprefix("SESSION_BUDDY_").removeprefix("AKOSHA_")
            yield f"env {name} is not a setting{nearest(bare, known)}"


def unknown_keys(keys: Iterable[str], origin: str) -> Iterable[str]:
    """Yield a warning for every `akosha_` key of a file that is not a setting."""
    known = [PREFIX + key for key in FIELDS]
    for key in keys:
        if key.startswith(PREFIX) and key not in known and key.removeprefix(PREFIX) not in REMOVED:
            yield f"{key_for_message(key)} in {origin} is not a setting{nearest(key[:LONGEST_KEY], known)}"


def removed_settings(environ: Mapping[str, str], files: Collection[tuple[str, Iterable[str]]]) -> Iterable[str]:
    """Yield one warning for every removed setting that is set; `files` are (name, keys), the highest first."""
    for key, instead in REMOVED.items():
        where = [f"env {variable(key)}"] if environ.get(variable(key)) else []
        where += [f"{PREFIX}{key} in {name}" for name, keys in files if PREFIX + key in keys]
        if where:
            yield f"{where[0]} has no effect any more; the value is {instead}"


def key_for_message(key: str) -> str:
    """Return a file's key as a message shows it: anybody may have written the file, so it can neither steer nor fill
    a terminal.
    """
    return key if key.isidentifier() and len(key) <= LONGEST_KEY else ascii(key[:LONGEST_KEY])


def nearest(name: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """Return a guess at what was meant, or where to look; a mapping says how each name is to be told."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    told = [known[one] if isinstance(known, Mapping) else one for one in close]
    return f": did you mean {told[0]}?" if told else "; akosha-agent config lists them all"
