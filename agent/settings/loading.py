"""Loads the settings from their sources, records the source of each value, and limits what a project's files may set.

The sources, highest precedence first:

command line
env SESSION_BUDDY_AKOSHA_*, AKOSHA_AGENT_*
env AKOSHA_CLOUD_BUCKET, _ENDPOINT, _REGION, AKOSHA_SYSTEM_ID, AKOSHA_ENABLE_FALLBACK
the file of --settings
~/.config/akosha-agent/credentials.yaml, ~/.config/akosha-agent/config.yaml (Application Support on macOS)
./settings/local.yaml, ./settings/session-buddy.yaml (only the keys in PROJECT_KEYS)
~/.claude/settings/local.yaml, ~/.claude/settings/session-buddy.yaml
~/.config/session-buddy/local.yaml, ~/.config/session-buddy/config.yaml
Session-Buddy's own log level and data_dir: from its environment variables, then from these files
the AWS configuration: if a bucket is set and no source above sets an endpoint
defaults
"""

import os
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from agent.domain.errors import SettingsError
from agent.settings.display import quoted, validation_messages
from agent.settings.endpoints import is_akosha_address, without_credentials
from agent.settings.model import FIELDS, PROJECT_KEYS, Loaded, Settings
from agent.settings.own_files import OwnFile, check_no_secrets, config_file, credentials_file, read_credentials
from agent.settings.sources import (
    DATA_DIR,
    SESSION_BUDDY,
    SHORT_VARIABLES,
    Layer,
    SettingsContext,
    SourcedValue,
    from_command_line,
    from_environment,
    key_for_message,
    layer,
    removed_settings,
    unknown_keys,
    unknown_variables,
    variable,
)
from agent.settings.validators import AUTO_REGION, PREFIX, Directory, LogLevel
from agent.settings.yaml_file import SettingsFile, expand, identity_of, read_settings_file

DEFAULT = "default"

MOST_NAMED_KEYS = 10
"""Maximum number of ignored keys that a warning names."""

_ROOT = 0

_BUCKET_ONLY = ("cloud_sse", "cloud_sse_kms_key_id", "cloud_storage_class")
"""Settings of objects in a bucket, which have no effect for a directory."""

_PROJECT_FILES = ("settings/local.yaml", "settings/session-buddy.yaml")
_USER_FILES = (
    ".claude/settings/local.yaml",
    ".claude/settings/session-buddy.yaml",
    ".config/session-buddy/local.yaml",
    ".config/session-buddy/config.yaml",
)
_NO_DRAFTS: Mapping[Path, bytes] = {}
_NO_ORIGINS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A settings file that may exist. The user's own files are trusted, those of the working directory are not.

    In the agent's own file (`own`), all keys are the agent's, and their prefix is optional.
    """

    path: Path
    name: str
    trusted: bool
    required: bool = False
    own: bool = False


@dataclass(slots=True)
class _Sources:
    """The layers of values read so far, highest precedence first, and warnings."""

    layers: list[Layer] = field(default_factory=list)
    session_buddy: dict[str, SourcedValue] = field(default_factory=dict)
    data_dirs: list[SourcedValue] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def load(
    *,
    command_line: Mapping[str, object] | None = None,
    settings_file: Path | None = None,
    environ: Mapping[str, str],
    cwd: Path,
    home: Path,
    drafts: Mapping[Path, bytes] = _NO_DRAFTS,
    draft_origins: Mapping[str, str] = _NO_ORIGINS,
) -> Loaded:
    """Read all sources and return the settings. `command_line` is by field name; None: the option is not used.

    `drafts`: new contents of the agent's own files, by path, which are read instead of the files. `draft_origins`:
    where values in them come from, by field name, for errors: the file does not have them yet.

    Raises SettingsError for invalid values (one error with a line for each), an unreadable file, or a missing
    `settings_file`.
    """
    context = SettingsContext(environ=environ, cwd=cwd, home=home)
    sources = _Sources(warnings=list(unknown_variables(environ)))
    sources.layers += [
        from_command_line(command_line or {}, context),
        from_environment({key: variable(key) for key in FIELDS}, context),
        from_environment(SHORT_VARIABLES, context),
    ]
    for key in SESSION_BUDDY:
        name = f"SESSION_BUDDY_{key.upper()}"
        if found := context.prepare(key, environ.get(name), f"env {name}"):
            sources.session_buddy[key] = found
    name = f"SESSION_BUDDY_{DATA_DIR.upper()}"
    if found := context.prepare("agent_data_dir", environ.get(name), f"env {name}"):
        sources.data_dirs.append(found)
    _read_files(sources, list(_candidates(settings_file, context)), context, drafts)
    sources.layers += [_session_buddy_log_level(sources), _session_buddy_data_dir(sources), _defaults(context)]

    sources.layers.insert(0, _aws_endpoint(_merged(sources), context))
    given = _merged(sources)
    named = _with_draft_origins(given, draft_origins, context)
    try:
        settings = Settings.model_validate({key: found.value for key, found in given.items()})
    except ValidationError as error:
        raise SettingsError("\n".join(validation_messages(error, named))) from error

    origins = {key: given[key].origin if key in given else DEFAULT for key in FIELDS}
    uses_cloud_endpoint = not settings.cloud_bucket and settings.http_endpoint == settings.cloud_endpoint
    if uses_cloud_endpoint and not _is_text(given.get("http_endpoint")):
        origins["http_endpoint"] = f"{PREFIX}cloud_endpoint, {origins['cloud_endpoint']}"
    if settings.cloud_bucket and is_akosha_address(settings.cloud_endpoint):
        raise SettingsError(
            f"{PREFIX}cloud_endpoint is {quoted('cloud_endpoint', settings.cloud_endpoint)} "
            f"({named['cloud_endpoint'].origin}): with a bucket, the URL must have no path",
            hint=f"set the URL of an Akosha server in {PREFIX}http_endpoint",
        )
    written = given.get("cloud_endpoint")
    if written is not None and settings.cloud_endpoint and settings.cloud_endpoint != written.value:
        sources.warnings.append(
            f"{PREFIX}cloud_endpoint ({written.origin}) ends with the bucket, which is removed: "
            f"{without_credentials(settings.cloud_endpoint)}"
        )
    for key, condition in _without_effect(settings, origins):
        sources.warnings.append(f"{PREFIX}{key} ({origins[key]}) has no effect {condition}")
    return Loaded(settings, origins, tuple(sources.warnings), tuple(sources.files))


def _without_effect(settings: Settings, origins: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the keys that have no effect in combination with others, and the reason."""
    is_http_endpoint = origins["http_endpoint"].startswith(f"{PREFIX}cloud_endpoint")
    if settings.cloud_endpoint and not settings.cloud_configured and not is_http_endpoint:
        yield "cloud_endpoint", f"without {PREFIX}cloud_bucket"
    if settings.directory is not None or not settings.cloud_configured:
        condition = "without" if settings.directory is None else "with a directory instead of"
        yield from ((key, f"{condition} {PREFIX}cloud_bucket") for key in _BUCKET_ONLY if getattr(settings, key))
    if settings.agent_remote_control and not settings.over_nats:
        condition = f"with {PREFIX}agent_bus: memory" if settings.agent_nats_url else f"without {PREFIX}agent_nats_url"
        yield "agent_remote_control", condition


def _with_draft_origins(
    given: Mapping[str, SourcedValue], draft_origins: Mapping[str, str], context: SettingsContext
) -> dict[str, SourcedValue]:
    """Return the values with the origins of those that only a draft of the agent's own files has."""
    own = {config_file(context.environ, context.home).name, credentials_file(context.environ, context.home).name}
    return {
        key: replace(found, origin=draft_origins[key]) if key in draft_origins and found.origin in own else found
        for key, found in given.items()
    }


def _merged(sources: _Sources) -> dict[str, SourcedValue]:
    return {key: found for values in reversed(sources.layers) for key, found in values.items()}


def _aws_endpoint(given: Mapping[str, SourcedValue], context: SettingsContext) -> Layer:
    """Return the endpoint of the AWS configuration, if there is a bucket and the settings name no endpoint."""
    values = {key: given[key].value if key in given else "" for key in ("cloud_bucket", "cloud_endpoint")}
    found = None
    if values["cloud_bucket"] and values["cloud_endpoint"] == "":
        from agent.settings.aws_config import aws_endpoint  # noqa: PLC0415 - 5 ms, and seldom needed

        found = aws_endpoint(context.environ, context.home)
    if found is None:
        return {}
    taken = {"cloud_endpoint": found.url}
    if found.region is not None and (given["cloud_region"].value if "cloud_region" in given else "") in (
        "",
        AUTO_REGION,
    ):
        taken["cloud_region"] = found.region
    return layer({key: context.prepare(key, value.value, value.origin) for key, value in taken.items()})


def _candidates(settings_file: Path | None, context: SettingsContext) -> Iterator[_Candidate]:
    own = config_file(context.environ, context.home)
    if settings_file is not None:
        path = context.path(settings_file)
        yield _Candidate(path, str(settings_file), trusted=True, required=True, own=path == own.path)
    yield _Candidate(own.path, own.name, trusted=True, own=True)
    for name in _PROJECT_FILES:
        yield _Candidate(context.cwd / name, f"./{name}", trusted=False)
    for name in _USER_FILES:
        yield _Candidate(context.home / name, f"~/{name}", trusted=True)


def _read_files(
    sources: _Sources, candidates: list[_Candidate], context: SettingsContext, drafts: Mapping[Path, bytes]
) -> None:
    # Each file is read once. A user's file that is also found below ./settings (working directory ~/.claude, or a
    # symbolic link in the project) keeps its precedence and its trust: a project can change neither.
    trusted = {identity_of(candidate.path) for candidate in candidates if candidate.trusted}
    seen = set()
    trusted_keys: list[tuple[str, Iterable[str]]] = []
    for candidate in candidates:
        if candidate.own and not candidate.required:
            sources.layers.append(_credentials(sources, context, drafts))
        file = _read(candidate, drafts)
        if file is None and candidate.required:
            raise SettingsError(f"the settings file {candidate.name} does not exist", hint="check --settings")
        if file is None or file.identity in seen or (file.identity in trusted and not candidate.trusted):
            continue
        seen.add(file.identity)
        sources.files.append(candidate.name)
        if candidate.trusted:
            sources.warnings += _writers_warnings(candidate, file)
            sources.warnings += unknown_keys(file.values, candidate.name)
            trusted_keys.append((candidate.name, file.values))
        sources.layers.append(_values(sources, candidate, file, context))
    sources.warnings += removed_settings(context.environ, trusted_keys)
    if sources.ignored:
        sources.warnings.append(_project_warning(sources.ignored))


def _read(candidate: _Candidate, drafts: Mapping[Path, bytes]) -> SettingsFile | None:
    if not candidate.own:
        return read_settings_file(
            candidate.path,
            name=candidate.name,
            wanted=lambda key: (
                key.startswith(PREFIX)
                or key in SESSION_BUDDY
                or key == DATA_DIR
                or (candidate.trusted and key in FIELDS)
            ),
        )
    return OwnFile(candidate.path, candidate.name).read(drafts.get(candidate.path))


def _credentials(sources: _Sources, context: SettingsContext, drafts: Mapping[Path, bytes]) -> Layer:
    """Return the secrets of the agent's own file. The S3 keys in it are not settings: the S3 client reads them."""
    file = credentials_file(context.environ, context.home)
    stored = read_credentials(file, drafts.get(file.path))
    if stored is None:
        return {}
    sources.files.append(file.name)
    sources.warnings += stored.warnings
    return layer({key: context.prepare(key, text, file.name) for key, text in stored.values.items() if key in FIELDS})


def _values(sources: _Sources, candidate: _Candidate, file: SettingsFile, context: SettingsContext) -> Layer:
    """Return the values of a file that are settings; remember Session-Buddy's own settings in it."""
    if candidate.own:
        check_no_secrets(candidate.name, file.values, credentials_file(context.environ, context.home))
        # The same wherever a command runs: relative paths start at the file's directory.
        context = replace(context, cwd=candidate.path.parent)
    values: dict[str, SourcedValue] = {}
    for written_key, value in file.values.items():
        if written_key == DATA_DIR:
            _take_data_dir(sources, value, candidate, context)
            continue
        key = written_key.removeprefix(PREFIX)
        if not candidate.trusted and written_key not in SESSION_BUDDY and key not in PROJECT_KEYS:
            if value is not None:
                sources.ignored.append((written_key, candidate.name))
            continue
        if written_key not in SESSION_BUDDY and (key not in FIELDS or key == written_key):
            continue
        given = _from_file(sources, key, value, candidate.name, context, trusted=candidate.trusted)
        if given is None:
            continue
        if written_key in SESSION_BUDDY:
            sources.session_buddy.setdefault(key, given)
        else:
            values[key] = given
    return values


def _writers_warnings(candidate: _Candidate, file: SettingsFile) -> Iterator[str]:
    """Yield a warning for each kind of other users who can write a file; root can do so anyway."""
    # No errors: in containers, mounted files often belong to another user or have mode 0777, as on FAT.
    path, consequence = shlex.quote(str(candidate.path)), "and with it decide where your memories are sent"
    if file.owner not in (os.geteuid(), _ROOT):
        yield (
            f"{candidate.name} belongs to user {file.owner}, who can change it, {consequence}: "
            f"chown {os.geteuid()} {path}"
        )
    if file.mode & stat.S_IWOTH:
        yield f"every user can write {candidate.name} (mode {file.mode:04o}), {consequence}: chmod o-w {path}"


def _take_data_dir(sources: _Sources, value: object, candidate: _Candidate, context: SettingsContext) -> None:
    """Add Session-Buddy's own `data_dir`, but not from a project's file, which must not choose what is uploaded."""
    if not isinstance(value, str):
        if value is not None:
            sources.warnings.append(_data_dir_warning(candidate.name))
    elif not candidate.trusted:
        if context.path(value.strip()) != _default_data_dir(context):
            sources.ignored.append((DATA_DIR, candidate.name))
    else:
        expansion = expand(value, context.environ)
        sources.warnings += [f"{DATA_DIR} in {candidate.name} uses {one}, which is not set" for one in expansion.unset]
        origin = f"{DATA_DIR} in {candidate.name}"
        if found := context.prepare("agent_data_dir", expansion.text, origin, written=value):
            sources.data_dirs.append(found)


def _data_dir_warning(origin: str) -> str:
    return f"{DATA_DIR} ({origin}) is ignored: it is not a valid path"


def _project_warning(ignored: list[tuple[str, str]]) -> str:
    """Return one warning for all keys that project files may not set."""
    files = " and ".join(dict.fromkeys(origin for _, origin in ignored))
    keys = list(dict.fromkeys(key_for_message(key) for key, _ in ignored))
    named = ", ".join(keys[:MOST_NAMED_KEYS])
    more = f" and {len(keys) - MOST_NAMED_KEYS} more" if len(keys) > MOST_NAMED_KEYS else ""
    return (
        f"{named}{more} in {files} {'is' if len(keys) == 1 else 'are'} ignored: files in the working directory can "
        "only set log level, chunk size and retry numbers (akosha-agent config set stores other settings; or name the "
        "file with --settings)"
    )


def _from_file(
    sources: _Sources, key: str, value: object, origin: str, context: SettingsContext, *, trusted: bool
) -> SourcedValue | None:
    name = key if key in SESSION_BUDDY else PREFIX + key
    if value is None:
        return None
    if not isinstance(value, str):
        return context.prepare(key, value, origin)
    expansion = expand(value, context.environ)
    if expansion.credentials and not trusted:
        sources.warnings.append(
            f"{name} in {origin} is ignored: a project's file may not use {', '.join(expansion.credentials)}"
        )
        return None
    sources.warnings += [f"{name} in {origin} uses {unset}, which is not set" for unset in expansion.unset]
    return context.prepare(key, expansion.text, origin, written=value)


def _session_buddy_log_level(sources: _Sources) -> Layer:
    # These are keys of Session-Buddy, so an invalid value must not stop the agent.
    found: dict[str, SourcedValue] = {}
    for key in ("log_level", "enable_debug_mode"):
        given = sources.session_buddy.get(key)
        if given is None:
            continue
        origin = given.origin if given.origin.startswith("env ") else f"{key} in {given.origin}"
        try:
            kind = TypeAdapter[object](LogLevel) if key == "log_level" else TypeAdapter[object](bool)
            value = kind.validate_python(given.value)
        except ValidationError:
            sources.warnings.append(f"{key} ({given.origin}) is ignored: its value is not valid")
            continue
        if value is True:
            found["agent_log_level"] = SourcedValue("DEBUG", origin, value)
        elif value is not False:
            found["agent_log_level"] = SourcedValue(value, origin, value)
    return found


def _session_buddy_data_dir(sources: _Sources) -> Layer:
    """Return the first valid data directory of Session-Buddy's own settings."""
    for given in sources.data_dirs:
        try:
            TypeAdapter[Path](Directory).validate_python(given.value)
        except ValidationError:
            sources.warnings.append(_data_dir_warning(given.origin))
            continue
        return {"agent_data_dir": given}
    return {}


def _defaults(context: SettingsContext) -> Layer:
    # The only default that depends on the context; all others are in the model.
    return {"agent_data_dir": SourcedValue(_default_data_dir(context), DEFAULT, "")}


def _default_data_dir(context: SettingsContext) -> Path:
    return context.home / ".claude" / "data"


def _is_text(given: SourcedValue | None) -> bool:
    return given is not None and given.value != ""
