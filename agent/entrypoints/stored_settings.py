"""Changes the agent's own files, `config.yaml` and `credentials.yaml`: validates the result as a whole, then writes it.

The result is validated as the service will read it: without this shell's variables, in the home directory.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.adapters import fs
from agent.bootstrap.home import RUN, Home
from agent.domain.errors import SettingsError, StateError
from agent.domain.naming import sanitise_system_id
from agent.domain.plain_text import printable
from agent.domain.routing import HTTP
from agent.entrypoints.installation import check_owner
from agent.settings import Loaded, Settings, load, variable
from agent.settings.model import FIELDS, PATHS, S3_KEYS
from agent.settings.own_files import (
    OwnFile,
    S3Credentials,
    check_private_file,
    config_file,
    credentials_file,
    is_secret,
    read_credentials,
)
from agent.settings.sources import DATA_DIR, SHORT_VARIABLES, is_agent_variable, key_for_message, nearest
from agent.settings.validators import AUTO_REGION, PREFIX
from agent.settings.yaml_edit import Scalar, edited

_HEADERS = {
    "config.yaml": "# The settings of akosha-agent: akosha-agent config set KEY VALUE\n",
    "credentials.yaml": "# The secrets of akosha-agent: akosha-agent config set KEY -\n",
}
_DIRECTORY_MODE = 0o700

_EXISTING = PATHS - {"agent_state_dir", "agent_log_file"}
"""Settings whose file or directory the agent does not create."""

SESSION_BUDDY_DATA_DIR = f"SESSION_BUDDY_{DATA_DIR.upper()}"
"""Session-Buddy's variable for the directory of its databases. The agent's own files override it."""

_OF_CREDENTIALS = {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"}
_OF_ENDPOINT = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}
_OF_REGION = {"AWS_REGION", "AWS_DEFAULT_REGION"}


@dataclass(frozen=True, slots=True)
class _Change:
    """The bytes of one file, before (None: there is no file) and after."""

    file: OwnFile
    old: bytes | None
    new: bytes


@dataclass(frozen=True, slots=True)
class Draft:
    """Changes of the agent's own files that are valid and not written yet, and settings and S3 keys with them.

    `warnings`: those that the changes cause. `files`: the names of the files that change.
    """

    loaded: Loaded
    s3_credentials: S3Credentials | None
    warnings: tuple[str, ...]
    changes: tuple[_Change, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(change.file.name for change in self.changes)

    def write(self) -> None:
        """Replace the files: all, or after an error or Ctrl-C none, so that no target has the keys of another.

        Raises StateError if one cannot be written, or was changed since it was read. Raises AkoshaError under sudo: the
        files would belong to root, and then be refused.
        """
        check_owner(Path.home())
        try:
            for change in self.changes:
                _write(change)
        except BaseException:
            for change in reversed(self.changes):
                with suppress(OSError, StateError):  # it is not written yet
                    _undo(change)
            raise


def own_key(written: str) -> str:
    """Return a key without its prefix. Raises SettingsError if it is not a setting."""
    key = {variable(one): one for one in FIELDS}.get(written, written).removeprefix(PREFIX)
    if key != written.removeprefix(PREFIX):
        raise SettingsError(f"{written} is the variable of a setting: did you mean {key}?")
    if key not in FIELDS and key not in S3_KEYS:
        known = [*FIELDS, *S3_KEYS]
        raise SettingsError(f"{key_for_message(written)} is not a setting{nearest(key, known)}")
    return key


def draft(
    changes: Mapping[str, str | None],
    environ: Mapping[str, str],
    home: Path,
    cwd: Path,
    origins: Mapping[str, str],
) -> Draft:
    """Return the changes of settings as a draft; None removes a setting. Relative paths start at `cwd`. Blocks.

    A secret is written to `credentials.yaml`, another value to `config.yaml`, and the key is removed from the other
    file. `origins`: where the user wrote the values, by key, for errors. Raises SettingsError if the settings would be
    invalid, with all sources except this shell's variables.
    """
    config, credentials = config_file(environ, home), credentials_file(environ, home)
    check_private_file(credentials)
    values = {key: None if text is None else _scalar(key, text, cwd) for key, text in changes.items()}
    secret = {key for key, value in values.items() if value is not None and is_secret(key, value)}
    written = [
        _change(config, {key: None if key in secret else value for key, value in values.items()}),
        _change(credentials, {key: value if key in secret else None for key, value in values.items()}),
    ]
    needed = tuple(change for change in written if change.new != (change.old or b""))
    others = service_like(environ)
    before: tuple[str, ...] = ()
    with suppress(SettingsError):  # perhaps these changes correct it
        before = load(environ=others, cwd=home, home=home).warnings
    drafts = {change.file.path: change.new for change in needed}
    loaded = load(environ=others, cwd=home, home=home, drafts=drafts, draft_origins=origins)
    stored = read_credentials(credentials, drafts.get(credentials.path))
    warnings = tuple(one for one in loaded.warnings if one not in before)
    return Draft(loaded, stored.s3 if stored else None, warnings, needed)


def service_like(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without its settings and AWS configuration, which a service does not see."""
    return {name: value for name, value in environ.items() if not is_agent_variable(name)}


def variables_of(key: str) -> tuple[str, ...]:
    """Return the environment variables of a setting, highest precedence first."""
    if key in S3_KEYS:
        return (key.replace("cloud_", "aws_").upper(),)
    short = SHORT_VARIABLES.get(key)
    return (variable(key), short) if short else (variable(key),)


def notes_on(settings: Settings, keys: Iterable[str]) -> Iterator[str]:
    """Yield what is unusual about the values of these keys, although they are valid: perhaps one was mistyped. Blocks.

    A disk that is not mounted now must not prevent its directory from being stored.
    """
    for key in keys:
        path = settings.directory if key == "cloud_endpoint" else getattr(settings, key) if key in _EXISTING else None
        if path is not None and not path.exists():
            created = key == "cloud_endpoint" and path.parent.is_dir()
            cure = "the first upload creates it" if created else f"mount its disk, or correct {PREFIX}{key}"
            yield f"{path} does not exist now: {cure}"
        if key == "system_id" and settings.system_id:
            used = sanitise_system_id(settings.system_id)
            if used != settings.system_id:
                yield f"the system ID in the target becomes {used}: it may have letters, digits, - and _ only"


def _change(file: OwnFile, values: Mapping[str, Scalar | None]) -> _Change:
    old = None
    if file.read() is not None:  # checks kind, size and layout
        old = file.path.read_bytes()
    new = edited(old or b"", values, file.name)
    if new and old is None:
        new = _HEADERS[file.path.name].encode() + new
    return _Change(file, old, new)


def _scalar(key: str, text: str, cwd: Path) -> Scalar:
    """Return the value as YAML has it: numbers and booleans in their own types, paths absolute.

    Raises SettingsError.
    """
    text = text.strip()
    if printable(text) != text:
        raise SettingsError(
            f"the value of {PREFIX}{key} contains control characters", hint="type it again without them"
        )
    if key in S3_KEYS:
        if not text:
            raise SettingsError(f"{PREFIX}{key} is empty", hint=f"akosha-agent config unset {key}")
        return text
    kind = FIELDS[key].annotation
    if key in PATHS and text and not text.startswith(("~", "$")):
        return str(cwd / text)
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float):
        with suppress(ValueError):
            return int(text)
        with suppress(ValueError):
            return float(text)
    return text


def _write(change: _Change) -> None:
    path = change.file.path.resolve()  # a link, as dotfile managers make, is kept
    is_private = change.file.path.name == "credentials.yaml"

    def check() -> None:
        current = path.read_bytes() if path.exists() else None
        if current != change.old:
            raise StateError(f"another program has just changed {change.file.name}", hint="run the command again")

    try:
        path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        like = path.stat() if path.exists() and not is_private else None
        fs.write_atomically(path, change.new, like=like, check=check)
    except OSError as error:
        raise StateError(
            f"{change.file.name} cannot be written: {error.strerror or error}",
            hint=f"check the owner and mode of {path.parent}, and the free space on its disk",
        ) from error


def _undo(change: _Change) -> None:
    path = change.file.path.resolve()
    if change.old is not None:
        _write(_Change(change.file, old=change.new, new=change.old))
    elif path.read_bytes() == change.new:
        path.unlink()


def overriding_variable(key: str, environ: Mapping[str, str]) -> str:
    """Return the variable of this shell that overrides a stored setting, "" if none does."""
    return next((name for name in variables_of(key) if environ.get(name)), "")


def shell_settings(environ: Mapping[str, str], home: Path) -> Settings | None:
    """Return the settings that commands of this shell use, None if they are invalid."""
    try:
        return load(environ=environ, cwd=home, home=home).settings
    except SettingsError:
        return None


def set_in_shell_only(
    settings: Settings, of_shell: Settings | None, environ: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield key and variable of each setting to which a variable of this shell gives another value."""
    for key in FIELDS:
        name = overriding_variable(key, environ)
        if key == "agent_data_dir" and not name and environ.get(SESSION_BUDDY_DATA_DIR):
            name = SESSION_BUDDY_DATA_DIR
        if name and (of_shell is None or getattr(of_shell, key) != getattr(settings, key)):
            yield key, name


def not_stored(names: Iterable[str], settings: Settings, *, has_keys: bool) -> list[str]:
    """Return those variables of a shell that no setting replaces. `has_keys`: `credentials.yaml` has S3 keys."""
    replaced = {SESSION_BUDDY_DATA_DIR, *(name for key in FIELDS for name in variables_of(key))}
    if has_keys:
        replaced |= {name for key in S3_KEYS for name in variables_of(key)} | _OF_CREDENTIALS
    if settings.cloud_endpoint:
        replaced |= _OF_ENDPOINT
    if settings.cloud_region != AUTO_REGION:
        replaced |= _OF_REGION
    uses_s3 = settings.directory is None and settings.force_method != HTTP
    return [name for name in names if name not in replaced and (uses_s3 or not name.startswith("AWS_"))]


def notice_of_earlier_settings(at: datetime, settings: Settings) -> str:
    """Return how the running agent reads settings that were stored at a time; "" if none runs or it started later."""
    try:
        holder = Home.of(settings).holder()
    except StateError:
        return ""  # the agent reports it itself
    if holder is None or holder.command != RUN or (holder.since is not None and holder.since >= at):
        return ""
    return f"The running agent uses the earlier settings until: kill -HUP {holder.pid}"
