"""The kinds of values that settings have, each with its rule. A rule raises ValueError with what is allowed."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from agent.domain import naming
from agent.settings import endpoints

DEFAULT_HTTP_ENDPOINT = "http://localhost:8682/mcp"
AUTO_REGION = "auto"

_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN = re.compile(r"[\x21-\x7e]*")


def _no_bool(value: object) -> object:
    # True is 1 for Python, and YAML reads yes and on as True; for people none of them is a number.
    if isinstance(value, bool):
        raise ValueError("a number is allowed, not true or false")  # noqa: TRY004 - pydantic collects ValueErrors only
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _level(value: object) -> object:
    text = value.strip().upper() if isinstance(value, str) else value
    return "WARNING" if text == "WARN" else text


def _region(value: str) -> str:
    # It becomes a part of the provider's host name.
    if value and not _REGION.fullmatch(value):
        raise ValueError("allowed is a region's name, of lower-case letters, digits and hyphens, or auto")
    return value or AUTO_REGION


def _system_id(value: str) -> str:
    if value:
        naming.sanitise_system_id(value)
    return value


def _http_endpoint(value: str) -> str:
    return endpoints.check_http_endpoint(value or DEFAULT_HTTP_ENDPOINT)


def _token(value: SecretStr) -> SecretStr:
    if not _TOKEN.fullmatch(value.get_secret_value()):
        raise ValueError("visible ASCII characters are allowed, as in an HTTP header")
    return value


def _folder(value: Path) -> Path:
    if "\0" in str(value) or not value.parts:
        raise ValueError("allowed is the path of a directory")
    try:
        return value.expanduser()
    except RuntimeError:
        raise ValueError("there is no such user's home directory; allowed is the path of a directory") from None


Whole = Annotated[int, BeforeValidator(_no_bool)]
Seconds = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Bucket = Annotated[str, AfterValidator(endpoints.check_bucket)]
CloudEndpoint = Annotated[str, AfterValidator(endpoints.check_cloud_endpoint)]
HttpEndpoint = Annotated[str, AfterValidator(_http_endpoint)]
NatsUrl = Annotated[str, AfterValidator(endpoints.check_nats_url)]
Region = Annotated[str, AfterValidator(_region)]
SystemId = Annotated[str, AfterValidator(_system_id)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Folder = Annotated[Path, AfterValidator(_folder)]
Method = Annotated[Literal["auto", "cloud", "http"], BeforeValidator(_lower)]
Bus = Annotated[Literal["auto", "memory", "nats"], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_level)]
LogFormat = Annotated[Literal["auto", "console", "json"], BeforeValidator(_lower)]
