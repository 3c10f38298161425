"""The types of settings and their validators. A validator raises ValueError with the rule."""

import os
import re
import shlex
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from agent.domain import naming
from agent.domain.errors import SettingsError
from agent.domain.routing import DEFAULT_HTTP_ENDPOINT
from agent.settings import endpoints

PREFIX = "akosha_"
AUTO_REGION = "auto"
KMS = "aws:kms"

_OTHERS = 0o077
_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_STORAGE_CLASS = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_TOKEN = re.compile(r"[\x21-\x7e]*")
_LINE = re.compile(r"[^\x00-\x1f\x7f]*")
_NKEY_SEED = re.compile(r"SU[A-Z2-7]{56}")

Bucket = Annotated[str, AfterValidator(endpoints.check_bucket)]
NatsUrl = Annotated[str, AfterValidator(endpoints.check_nats_url)]


class EarlierFieldError(ValueError):
    """An error of the field `key`, raised by the validator of a later field, since fields are validated in order."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


def _no_bool(value: object) -> object:
    # In Python True equals 1, and YAML reads yes and on as True; a person does not mean a number by these.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic collects ValueErrors only
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _level(value: object) -> object:
    text = value.strip().upper() if isinstance(value, str) else value
    return "WARNING" if text == "WARN" else text


def check_region(value: str) -> str:
    """Check the name of a region; empty is auto. Raises ValueError."""
    # The region becomes part of the provider's host name.
    if value and not _REGION.fullmatch(value):
        raise ValueError("must be a region's name, of lower-case letters, digits and hyphens, or auto")
    return value or AUTO_REGION


def _sse(value: object) -> object:
    known = {"aes256": "AES256", KMS: KMS}
    return known.get(value.strip().lower(), value.strip()) if isinstance(value, str) else value


def _storage_class(value: str) -> str:
    # The storage class becomes a header.
    if value and not _STORAGE_CLASS.fullmatch(value.upper()):
        raise ValueError("must be the name of a storage class, such as STANDARD_IA")
    return value.upper()


def _system_id(value: str) -> str:
    if value:
        naming.sanitise_system_id(value)
    return value


# Whether http:// is permitted is checked later: akosha_agent_allow_plaintext is not known yet.
def _cloud_endpoint(value: str) -> str:
    return endpoints.check_cloud_endpoint(value, plaintext=True)


def _http_endpoint(value: str) -> str:
    return endpoints.check_http_endpoint(value or DEFAULT_HTTP_ENDPOINT, plaintext=True)


def _hosts(value: object) -> object:
    """Return YAML's booleans and lists as the text that an environment variable has."""
    if isinstance(value, bool):
        return endpoints.ALL_HOSTS if value else ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if isinstance(value, str) and value.strip().lower() == "false" else value


def _token(value: SecretStr) -> SecretStr:
    if not _TOKEN.fullmatch(value.get_secret_value()):
        raise ValueError("must consist of visible ASCII characters, as in an HTTP header")
    return value


def _line(value: str) -> str:
    if not _LINE.fullmatch(value):
        raise ValueError("must not contain control characters")
    return value


def _password(value: SecretStr) -> SecretStr:
    _line(value.get_secret_value())
    return value


def _nkey_seed(value: SecretStr) -> SecretStr:
    seed = value.get_secret_value()
    if seed and not _NKEY_SEED.fullmatch(seed):
        raise ValueError("must be a user's seed: SU and 56 more characters, A to Z and 2 to 7")
    return value


def _none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _file(value: Path | None) -> Path | None:
    return None if value is None else _path(value, "the path of a file")


def _folder(value: Path) -> Path:
    return _path(value, "the path of a directory")


def _path(value: Path, what: str) -> Path:
    if "\0" in str(value) or not value.parts or not _is_encodable(value):
        raise ValueError(f"must be {what}")
    try:
        path = value.expanduser()
    except RuntimeError:
        raise ValueError(f"begins with ~ and a user without a home directory; must be {what}") from None
    if endpoints.is_too_long(path):
        raise ValueError(f"is longer than a path can be; must be {what}")
    return path


def _is_encodable(path: Path) -> bool:
    # YAML can write half of a surrogate pair, which no file name contains.
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


Integer = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
CloudEndpoint = Annotated[str, AfterValidator(_cloud_endpoint)]
Hosts = Annotated[str, BeforeValidator(_hosts), AfterValidator(endpoints.check_hosts)]
HttpEndpoint = Annotated[str, AfterValidator(_http_endpoint)]
Region = Annotated[str, AfterValidator(check_region)]
SystemId = Annotated[str, AfterValidator(_system_id)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Line = Annotated[str, AfterValidator(_line)]
Password = Annotated[SecretStr, AfterValidator(_password)]
NkeySeed = Annotated[SecretStr, AfterValidator(_nkey_seed)]
Directory = Annotated[Path, AfterValidator(_folder)]
OptionalFile = Annotated[Path | None, BeforeValidator(_none), AfterValidator(_file)]
Sse = Annotated[Literal["", "AES256", "aws:kms"], BeforeValidator(_sse)]
StorageClass = Annotated[str, AfterValidator(_storage_class)]
Method = Annotated[Literal["auto", "cloud", "http"], BeforeValidator(_lower)]
Bus = Annotated[Literal["auto", "memory", "nats"], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)]
LogFormat = Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)]


def check_private(path: Path, key: str) -> None:
    """Check that the file of a setting is a regular file that only this user can read. Opens it without reading.

    Follows symbolic links. Raises SettingsError with the key and the path.
    """
    name = f"{PREFIX}{key}"
    try:
        # A named pipe would block a plain open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SettingsError(
            f"{name}: the file {path} does not exist", hint=f"set {name} to the path of a file"
        ) from error
    except PermissionError as error:
        raise SettingsError(
            f"{name}: no permission to read {path}",
            hint=f"make the user who runs the agent its owner (chown), then {_chmod(path)}",
        ) from error
    except OSError as error:
        raise SettingsError(
            f"{name}: {path} cannot be opened: {error.strerror}", hint=f"set {name} to the path of a file"
        ) from error
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(mode):
        raise SettingsError(f"{name}: {path} is not a regular file", hint=f"set {name} to the path of a regular file")
    if mode & _OTHERS:
        raise SettingsError(f"{name}: other users can open {path} (mode {stat.S_IMODE(mode):04o})", hint=_chmod(path))


def _chmod(path: Path) -> str:
    return f"chmod 600 {shlex.quote(str(path))}"
