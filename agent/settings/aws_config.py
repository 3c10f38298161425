"""Reads the S3 endpoint of the AWS configuration (variables, `~/.aws/config`), in the same way as botocore.

The agent makes botocore ignore its own lookup: the endpoint found here becomes `cloud_endpoint`, so that status,
ledger, validation and client use the same one. The order is botocore's: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL,
`endpoint_url` of the profile's services section, `endpoint_url` of the profile. The region comes from the same
configuration.
"""

import configparser
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.domain.errors import SettingsError

_IGNORE = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"
_PROFILE_VARIABLES = ("AWS_DEFAULT_PROFILE", "AWS_PROFILE")
_SERVICE = "s3"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")

_Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AwsValue:
    """A value and its origin."""

    value: str = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class AwsEndpoint:
    """The S3 endpoint, and the region if it is configured."""

    url: AwsValue
    region: AwsValue | None


@dataclass(frozen=True, slots=True)
class _Profile:
    """A profile's values, the values of the services sections, and the file's name for messages."""

    name: str
    values: _Values
    services: Mapping[str, _Values]
    file: str

    def origin(self, key: str) -> str:
        return f"{key} of profile {self.name} in {self.file}"


def aws_endpoint(environ: Mapping[str, str], home: Path) -> AwsEndpoint | None:
    """Return the S3 endpoint of the AWS configuration, None if it has none. Reads files.

    An invalid file is treated as empty, because the S3 client reports it. Raises SettingsError for a profile whose
    services section does not exist.
    """
    profile = _profile(environ, home)
    ignored = environ.get(_IGNORE, profile.values.get("ignore_configured_endpoint_urls", ""))
    if ignored.lower() == "true":
        return None
    url = _url(environ, profile)
    if url is None:
        return None
    region = None
    if "AWS_DEFAULT_REGION" in environ:
        region = AwsValue(environ["AWS_DEFAULT_REGION"], "env AWS_DEFAULT_REGION")
    elif "region" in profile.values:
        region = AwsValue(profile.values["region"], profile.origin("region"))
    return AwsEndpoint(url, region)


def _url(environ: Mapping[str, str], profile: _Profile) -> AwsValue | None:
    for name in (f"AWS_ENDPOINT_URL_{_SERVICE.upper()}", "AWS_ENDPOINT_URL"):
        if url := environ.get(name):
            return AwsValue(url, f"env {name}")
    if (section := profile.values.get("services")) is not None:
        if not profile.services.get(section):
            raise SettingsError(
                f"profile {profile.name} uses the section [services {section}], which is not in {profile.file}",
                hint=f"add the section with endpoint_url for {_SERVICE}, or set akosha_cloud_endpoint",
            )
        if url := _nested(profile.services[section].get(_SERVICE, "")).get("endpoint_url"):
            return AwsValue(url, f"endpoint_url of services {section} in {profile.file}")
    if url := profile.values.get("endpoint_url"):
        return AwsValue(url, profile.origin("endpoint_url"))
    return None


def _profile(environ: Mapping[str, str], home: Path) -> _Profile:
    """Return the profile in use. As in botocore, the credentials file takes precedence and may set an endpoint."""
    name = next((environ[variable] for variable in _PROFILE_VARIABLES if variable in environ), "default")
    path, shown = _configured_file(environ, home, "AWS_CONFIG_FILE", "config")
    config = _sections(path)
    values: dict[str, str] = dict(config.get("default", {})) if name == "default" else {}
    services = {}
    for section, keys in config.items():
        kind, called = _split(section)
        if kind.startswith("profile") and called == name:
            values = dict(keys)
        elif kind.startswith("services") and called:
            services[called] = keys
    credentials, _ = _configured_file(environ, home, "AWS_SHARED_CREDENTIALS_FILE", "credentials")
    return _Profile(name, values | dict(_sections(credentials).get(name, {})), services, shown)


def _configured_file(environ: Mapping[str, str], home: Path, variable: str, default: str) -> tuple[Path, str]:
    """Return a file's path, and its name for messages."""
    written = environ.get(variable)
    if written is None:
        return home / ".aws" / default, f"~/.aws/{default}"
    expanded = _VARIABLE.sub(lambda match: environ.get(match[1] or match[2], match[0]), written)
    path = Path(expanded)
    return (home.joinpath(*path.parts[1:]) if path.parts[:1] == ("~",) else path), written


def _sections(path: Path) -> dict[str, _Values]:
    parser = configparser.RawConfigParser()
    try:
        if not path.is_file():
            return {}
        parser.read([path], encoding="utf-8")
        return {section: dict(parser.items(section)) for section in parser.sections()}
    except (configparser.Error, OSError, ValueError):
        return {}


def _split(section: str) -> tuple[str, str]:
    """Return a section's kind and name: `profile "a b"` is a profile named `a b`."""
    try:
        parts = shlex.split(section)
    except ValueError:
        return section, ""
    return (parts[0], parts[1]) if len(parts) == 2 else (section, "")  # noqa: PLR2004 - a kind and a name


def _nested(text: str) -> dict[str, str]:
    """Return the values of an indented block below a key, as botocore does."""
    pairs = (line.partition("=") for line in text.splitlines() if line.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}
