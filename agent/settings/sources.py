"""The sources of settings: each provides values by key, with their origin."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.settings.model import FIELDS, PATHS, S3_KEYS, TEXTS
from agent.settings.validators import PREFIX

LONGEST_KEY = 60
COMMAND_LINE = "command line"

SESSION_BUDDY = ("enable_debug_mode", "log_level")
"""Session-Buddy's own keys that set the log level if no other source does."""

DATA_DIR = "data_dir"
"""Session-Buddy's own key for the directory of its databases: the default of `agent_data_dir`."""

SHORT_VARIABLES = {
    "cloud_bucket": "AKOSHA_CLOUD_BUCKET",
    "cloud_endpoint": "AKOSHA_CLOUD_ENDPOINT",
    "cloud_region": "AKOSHA_CLOUD_REGION",
    "system_id": "AKOSHA_SYSTEM_ID",
    "enable_fallback": "AKOSHA_ENABLE_FALLBACK",
}
"""Short environment variables, which have lower precedence than those with the prefix."""

_AGENT_VARIABLE = re.compile(r"(SESSION_BUDDY_AKOSHA|AKOSHA|AWS)_\w+")
_SESSION_BUDDYS = {f"SESSION_BUDDY_{key.upper()}" for key in (DATA_DIR, *SESSION_BUDDY)}

_STREAM = "for a stream that the agent creates; `nats stream edit AKOSHA_SYNC` changes an existing one"

REMOVED = {
    "http_batch_size": "500 memories",
    "agent_ingest_max_rows": "5,000,000 rows",
    "agent_ingest_max_mb": "65536 MiB",
    "agent_nats_connect_seconds": "5 s",
    "agent_nats_ping_seconds": "20 s",
    "agent_nats_ping_timeout_seconds": "10 s",
    "agent_nats_reconnect_seconds": "2 s",
    "agent_nats_reconnect_max_seconds": "30 s",
    "agent_nats_ack_wait_seconds": "10 s",
    "agent_nats_max_age_days": f"7 days, {_STREAM}",
    "agent_nats_max_mb": f"256 MiB, {_STREAM}",
    "agent_nats_duplicate_window_seconds": f"600 s, {_STREAM}",
    "agent_nats_inactive_days": "30 days",
}
"""Settings of earlier versions, with the value used instead. One that is still set causes a warning, not an error."""


def variable(key: str) -> str:
    """Return the environment variable of a key. Keys that begin with `agent_` have a shorter prefix."""
    return ("AKOSHA_" if key.startswith("agent_") else "SESSION_BUDDY_AKOSHA_") + key.upper()


def is_agent_variable(name: str) -> bool:
    """Return whether a variable is a setting, Session-Buddy's or the agent's, or is part of the AWS configuration."""
    return _AGENT_VARIABLE.fullmatch(name) is not None or name in _SESSION_BUDDYS


@dataclass(frozen=True, slots=True)
class SourcedValue:
    """A value from a source, its origin, and the text before variables were expanded."""

    value: object = field(repr=False)
    origin: str
    written: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class SettingsContext:
    """The environment, working directory and home directory that values may refer to."""

    environ: Mapping[str, str] = field(repr=False)
    cwd: Path
    home: Path

    def path(self, value: str | Path) -> Path:
        """Return an absolute path: `~` is the home directory, a relative path starts at the working directory."""
        path = Path(value)
        if path.parts[:1] == ("~",):
            return self.home.joinpath(*path.parts[1:])
        # Another user's home (`~name`) is resolved by the validation of the path.
        return path if str(path).startswith("~") else self.cwd / path

    def prepare(self, key: str, value: object, origin: str, *, written: object = None) -> SourcedValue | None:
        """Return the value prepared for its key, None if it counts as not set."""
        written = value if written is None else written
        if isinstance(value, str):
            value = value.strip()
            if not value and key not in TEXTS:
                return None
        if key in PATHS and isinstance(value, (str, Path)) and value != "":
            value = self.path(value)
        return None if value is None else SourcedValue(value, origin, written)


Layer = Mapping[str, SourcedValue]
"""The values of one source, by key."""


def layer(given: Mapping[str, SourcedValue | None]) -> Layer:
    """Return the values that are set."""
    return {key: found for key, found in given.items() if found is not None}


def from_command_line(values: Mapping[str, object], context: SettingsContext) -> Layer:
    """Return the layer of command line options. `values` is by field name; None: the option is not used."""
    return layer({key: context.prepare(key, value, COMMAND_LINE) for key, value in values.items()})


def from_environment(names: Mapping[str, str], context: SettingsContext) -> Layer:
    """Return the layer of environment variables. `names` is key -> variable."""
    return layer({key: context.prepare(key, context.environ.get(name), f"env {name}") for key, name in names.items()})


def unknown_variables(environ: Mapping[str, str]) -> Iterable[str]:
    """Yield a warning for each variable with a prefix of the agent that is not a setting."""
    known = {key.upper(): variable(key) for key in FIELDS}
    removed = {variable(key) for key in REMOVED}
    for name in sorted(environ):
        if name.startswith(("SESSION_BUDDY_AKOSHA_", "AKOSHA_AGENT_")) and name not in {*known.values(), *removed}:
            # Names are compared without their long prefixes, which would make any two similar.
            bare = name.removeprefix("SESSION_BUDDY_").removeprefix("AKOSHA_")
            yield f"env {name} is not a setting{nearest(bare, known)}"


def unknown_keys(keys: Iterable[str], origin: str) -> Iterable[str]:
    """Yield a warning for each `akosha_` key of a file that is not a setting, and for a setting without the prefix."""
    known = {key: PREFIX + key for key in FIELDS}
    for key in keys:
        if key.removeprefix(PREFIX) in S3_KEYS:
            yield f"{key} in {origin} is not read: akosha-agent config set {key.removeprefix(PREFIX)} - stores it"
        elif key in FIELDS or (key.startswith(PREFIX) and key.removeprefix(PREFIX) not in {*known, *REMOVED}):
            bare = key.removeprefix(PREFIX)[:LONGEST_KEY]  # the prefix would make any two names similar
            yield f"{key_for_message(key)} in {origin} is not a setting{nearest(bare, known)}"


def removed_settings(environ: Mapping[str, str], files: Collection[tuple[str, Iterable[str]]]) -> Iterable[str]:
    """Yield a warning for each removed setting that is set. `files` are (name, keys), highest precedence first."""
    for key, instead in REMOVED.items():
        where = [f"env {variable(key)}"] if environ.get(variable(key)) else []
        where += [f"{PREFIX}{key} in {name}" for name, keys in files if PREFIX + key in keys]
        if where:
            yield f"{where[0]} has no effect any more; the value is {instead}"


def key_for_message(key: str) -> str:
    """Return a file's key for a message, bounded and printable, because the file may not be trusted."""
    return key if key.isidentifier() and len(key) <= LONGEST_KEY else ascii(key[:LONGEST_KEY])


def nearest(name: str, known: Iterable[str] | Mapping[str, str]) -> str:
    """Return a suggestion of the most similar known name, else of the command that lists all.

    A mapping has the form in which to show each name.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    shown = [known[one] if isinstance(known, Mapping) else one for one in close]
    return f": did you mean {shown[0]}?" if shown else "; akosha-agent config --all lists them"
