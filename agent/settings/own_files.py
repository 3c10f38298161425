"""The agent's own files of settings: `config.yaml`, and `credentials.yaml` for secrets.

`akosha-agent config set` and `akosha-agent init` write them. A secret in `config.yaml` is an error, and so is a
`credentials.yaml` that others can open or that another user owns. The prefix `akosha_` is optional in both.
"""

import os
import shlex
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.settings import webhooks
from agent.settings.endpoints import has_user_info, nats_servers
from agent.settings.model import S3_KEYS, SECRET
from agent.settings.sources import key_for_message, nearest
from agent.settings.validators import PREFIX
from agent.settings.yaml_file import SettingsFile, parse_settings_file, read_settings_file

APP = "akosha-agent"
CONFIG = "config.yaml"
CREDENTIALS = "credentials.yaml"

CREDENTIAL_KEYS = frozenset({*SECRET, *S3_KEYS, "agent_nats_url", webhooks.KEY})
"""The keys that `credentials.yaml` may have. The URL of a NATS server may contain a password or token."""

_OTHERS = 0o077


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """The S3 credentials of `credentials.yaml`. `session_token` is None for long-term keys."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class OwnFile:
    """One of the two files: its path, and its name for people."""

    path: Path
    name: str

    def read(self, draft: bytes | None = None) -> SettingsFile | None:
        """Return the values by key with the prefix, None if there is no file. `draft` is read instead of the file.

        Raises SettingsError if the file cannot be read or parsed, or has a key twice.
        """
        everything: Callable[[str], bool] = lambda _: True  # noqa: E731 - named for its meaning
        if draft is None:
            file = read_settings_file(self.path, name=self.name, wanted=everything)
        else:
            file = parse_settings_file(draft, name=self.name, wanted=everything)
        if file is None:
            return None
        values: dict[str, object] = {}
        for written, value in file.values.items():
            key = written if written.startswith(PREFIX) else PREFIX + written
            if key in values:
                raise SettingsError(
                    f"{self.name} has {key_for_message(key)} twice, with and without {PREFIX}", hint="delete one"
                )
            values[key] = value
        return SettingsFile(file.identity, file.mode, file.owner, values)


def config_home(environ: Mapping[str, str], home: Path, platform: str = sys.platform) -> Path:
    """Return the user's directory of configuration: XDG_CONFIG_HOME if it is an absolute path, else the platform's."""
    chosen = Path(environ.get("XDG_CONFIG_HOME", ""))
    if chosen.is_absolute():
        return chosen
    return home / "Library" / "Application Support" if platform == "darwin" else home / ".config"


def config_file(environ: Mapping[str, str], home: Path) -> OwnFile:
    """Return the file of settings."""
    return _own_file(CONFIG, environ, home)


def credentials_file(environ: Mapping[str, str], home: Path) -> OwnFile:
    """Return the file of secrets."""
    return _own_file(CREDENTIALS, environ, home)


def _own_file(name: str, environ: Mapping[str, str], home: Path) -> OwnFile:
    path = config_home(environ, home) / APP / name
    return OwnFile(path, f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path))


def is_secret(key: str, value: object) -> bool:
    """Return whether the value of a key must be in `credentials.yaml`."""
    if key == "agent_nats_url":
        try:
            return any(map(has_user_info, nats_servers(str(value or ""))))
        except ValueError:
            return "@" in str(value)
    if key == webhooks.KEY:
        return webhooks.has_secret(value)
    return key in SECRET or key in S3_KEYS


def check_no_secrets(name: str, values: Mapping[str, object], credentials: OwnFile) -> None:
    """Raise SettingsError if the values of `config.yaml` have a secret."""
    keys = {key.removeprefix(PREFIX): value for key, value in values.items()}
    found = [key for key, value in keys.items() if value not in (None, "") and is_secret(key, value)]
    if found:
        moved = S3_KEYS[:2] if found[0] in S3_KEYS else found[:1]  # one S3 key without the other is an error
        words = " ".join(f"{key} -" for key in moved)
        raise SettingsError(
            f"{name} contains {' and '.join(found)}: secrets belong in {credentials.name}",
            hint=f"akosha-agent config set {words} moves {'it' if len(moved) == 1 else 'them'} there",
        )


@dataclass(frozen=True, slots=True)
class StoredCredentials:
    """The texts in `credentials.yaml` by key without the prefix, and warnings about other keys."""

    values: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def s3(self) -> S3Credentials | None:
        access, secret, token = (self.values.get(key, "") for key in S3_KEYS)
        return S3Credentials(access, secret, token or None) if access else None


def read_credentials(file: OwnFile, draft: bytes | None = None) -> StoredCredentials | None:
    """Return what is in `credentials.yaml`, None if it does not exist. Variables in values are not expanded.

    Raises SettingsError if others can open the file, if another user owns it, if a value is not a text, or if one of
    the S3 keys is set without the other.
    """
    found = file.read(draft)
    if found is None:
        return None
    _check_private(file, found)
    values: dict[str, str] = {}
    warnings = []
    for written, value in found.values.items():
        key = written.removeprefix(PREFIX)
        if key not in CREDENTIAL_KEYS:
            warnings.append(f"{key_for_message(key)} in {file.name} is not a secret{nearest(key, CREDENTIAL_KEYS)}")
        elif value is not None:
            if key == webhooks.KEY and isinstance(value, list):
                value = webhooks.json_text(value)  # noqa: PLW2901 - the text of a variable
            if not isinstance(value, str):
                raise SettingsError(f"{key} in {file.name} is not a text", hint="put it in quotes")
            values[key] = value.strip()
    access, secret, token = (values.get(key, "") for key in S3_KEYS)
    if bool(access) != bool(secret) or (token and not access):
        raise SettingsError(
            f"{file.name} must have both {S3_KEYS[0]} and {S3_KEYS[1]}, or neither",
            hint=f"akosha-agent config set {S3_KEYS[0]} - {S3_KEYS[1]} -",
        )
    return StoredCredentials(values, tuple(warnings))


def s3_credentials(environ: Mapping[str, str], home: Path) -> S3Credentials | None:
    """Return the S3 credentials of `credentials.yaml`, None if it has none. Blocks. Raises SettingsError."""
    stored = read_credentials(credentials_file(environ, home))
    return stored.s3 if stored else None


def check_private_file(file: OwnFile) -> None:
    """Raise SettingsError if `credentials.yaml` exists and is refused: its secrets are neither read nor replaced."""
    if (found := file.read()) is not None:
        _check_private(file, found)


def _check_private(file: OwnFile, found: SettingsFile) -> None:
    if found.owner != os.geteuid():
        raise SettingsError(
            f"{file.name} is refused: it belongs to user {found.owner}, who can change it",
            hint=f"make yourself its owner: chown {os.geteuid()} {shlex.quote(str(file.path))}",
        )
    if found.mode & _OTHERS:
        raise SettingsError(
            f"{file.name} is refused: other users can open it (mode {stat.S_IMODE(found.mode):04o})",
            hint=f"chmod 600 {shlex.quote(str(file.path))}; if this machine has other users, replace the keys, too",
        )
