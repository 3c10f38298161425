"""The answers to `init`, from its options or from the dialogue, as changes of settings."""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from agent.domain.errors import NamingError, SettingsError
from agent.domain.naming import MAX_GENERATED_ID, sanitise_system_id
from agent.entrypoints.init import dialogue
from agent.entrypoints.init.destination import ADDRESSES, KEYS, Destination, Kind, from_address
from agent.entrypoints.stored_settings import Draft, overriding_variable, service_like, shell_settings
from agent.settings import Settings, load
from agent.settings.aws_config import aws_endpoint
from agent.settings.endpoints import ALL_HOSTS
from agent.settings.model import FIELDS, S3_KEYS
from agent.settings.own_files import config_file, credentials_file

Changes = dict[str, str | None]

ANSWER, INPUT = "your answer", "standard input"
"""Where the user wrote a value."""

HTTP_TOKEN = "http_token"  # noqa: S105 - the name of a setting
_SECRETS = (*S3_KEYS, HTTP_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """The answers that were given as options; None: ask, or with `yes` take the default."""

    to: str | None
    bucket: str
    region: str
    system_id: str | None
    directories: Changes
    keys_from_stdin: bool
    allow_plaintext: bool
    yes: bool
    force: bool

    def __post_init__(self) -> None:
        """Raise SettingsError for a wrong system ID: it is not asked for again."""
        if self.system_id is not None:
            try:
                system_id_of(self.system_id)
            except ValueError as error:
                raise SettingsError(f"--system-id {self.system_id!r} {error}") from None

    def without_address(self) -> "Flags":
        """Return the options for another round of questions: the address was wrong, and the others belong to it."""
        return replace(self, to=None, bucket="", region="", keys_from_stdin=False, allow_plaintext=False)


@dataclass(frozen=True, slots=True)
class Answers:
    """The changes of settings that the user asks for, and the new destination, None to keep the present one."""

    changes: Changes
    destination: Destination | None
    origins: Mapping[str, str]
    """Where the user wrote the value of each key, for messages."""

    @property
    def origin_of_keys(self) -> str:
        """Where the S3 keys or the token come from; "" if none were given."""
        return " and ".join(dict.fromkeys(self.origins[key] for key in _SECRETS if self.changes.get(key)))


def answers(flags: Flags, known: Draft, earlier: Answers | None) -> Answers:
    """Return the changes that the options and the answers ask for.

    `earlier`: answers of which only the keys or the token were wrong; the others are not asked for again. Raises
    SettingsError.
    """
    if earlier is not None:
        destination = earlier.destination
        changes = {key: text for key, text in earlier.changes.items() if key not in _SECRETS}
        changes |= _secrets(flags, destination, known)
    else:
        destination = _destination(flags, known.loaded.settings)
        changes = dict(flags.directories)
        if destination is not None:
            destination = _with_aws_configuration(destination)
            changes |= _destination_settings(destination)
            changes |= _plaintext(flags, destination, known.loaded.settings)
        changes |= _secrets(flags, destination, known)
        changes |= _system_id(flags, known.loaded.settings)
    return Answers(changes, destination, _origins(flags, changes))


def given_directories(data_dir: Path | None, state_dir: Path | None) -> Changes:
    """Return the directories of the options, or the data directory of a variable of this shell."""
    of_shell, of_service = (shell_settings(one, Path.home()) for one in (os.environ, service_like(os.environ)))
    if data_dir is None and of_shell and of_service and of_shell.agent_data_dir != of_service.agent_data_dir:
        data_dir = of_shell.agent_data_dir  # of a variable of this shell, such as Session-Buddy's
    given = {"agent_data_dir": data_dir, "agent_state_dir": state_dir}
    return {key: str(path) for key, path in given.items() if path is not None}


def _origins(flags: Flags, changes: Changes) -> Mapping[str, str]:
    options = {} if flags.system_id is None else {"system_id": "--system-id"}
    options |= {"agent_data_dir": "--data-dir", "agent_state_dir": "--state-dir"}
    if flags.to is not None:
        options |= {"cloud_endpoint": "--to", "http_endpoint": "--to", "cloud_region": "--region"}
        options["cloud_bucket"] = "--bucket" if flags.bucket else "--to"
    for key in _SECRETS:
        variable = overriding_variable(key, os.environ)
        if flags.keys_from_stdin:
            options[key] = INPUT
        elif variable and os.environ[variable] == changes.get(key):
            options[key] = f"env {variable}"
    return {key: options.get(key, ANSWER) for key in changes}


def _destination(flags: Flags, settings: Settings) -> Destination | None:
    """Return the destination that is asked for; None to keep the present one."""
    cwd, home = Path.cwd(), Path.home()
    if flags.to is not None:
        destination = from_address(flags.to, flags.bucket, flags.region, cwd, home)
        if destination.kind is Kind.AKOSHA:
            dialogue.say(dialogue.AKOSHA_NEEDS)
        return destination
    if flags.bucket or flags.region:
        raise SettingsError("--bucket and --region need --to", hint=f"--to {ADDRESSES}")
    if flags.yes:
        if not settings.target_chosen:
            raise SettingsError("--yes needs --to: where memories go is not set", hint=f"--to {ADDRESSES}")
        return None
    if settings.target_chosen and not dialogue.confirm("Send memories elsewhere?", default=False):
        return None
    return dialogue.ask_destination(cwd, home)


def _with_aws_configuration(destination: Destination) -> Destination:
    """Return a bucket of AWS with the endpoint and region of this shell's variables, which the service does not see."""
    if destination.kind is not Kind.BUCKET or "cloud_endpoint" in destination.settings:
        return destination
    home, given = Path.home(), dict[str, str]()
    of_shell, of_service = (aws_endpoint(one, home) for one in (os.environ, service_like(os.environ)))
    if of_shell is not None and (of_service is None or of_service.url.value != of_shell.url.value):
        given["cloud_endpoint"] = of_shell.url.value
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        given["cloud_region"] = region
    return replace(destination, settings={**given, **destination.settings})


def _destination_settings(destination: Destination) -> Changes:
    """Return the settings of a destination, and None for those that it does not have.

    A key that another source sets, such as a file of Session-Buddy, gets the default as its value instead.
    """
    home, own = Path.home(), {file(os.environ, Path.home()).path: b"" for file in (config_file, credentials_file)}
    rest: Changes = {key: str(FIELDS[key].default) for key in KEYS if key not in destination.settings}
    with suppress(SettingsError):  # they may be valid only together with the agent's own files
        others = load(environ=service_like(os.environ), cwd=home, home=home, drafts=own).settings
        rest = {key: None if getattr(others, key) == default else default for key, default in rest.items()}
    return {**destination.settings, **rest}


def _plaintext(flags: Flags, destination: Destination, settings: Settings) -> Changes:
    host, allowed = destination.unencrypted_host, settings.agent_allow_plaintext
    if not host or allowed == ALL_HOSTS or host in allowed.split(","):
        return {}
    question = f"http:// sends your memories unencrypted to {host}. Allow that for this host?"
    if flags.allow_plaintext or (not flags.yes and dialogue.confirm(question, default=False)):
        return {"agent_allow_plaintext": f"{allowed},{host}".lstrip(",")}
    raise SettingsError(f"http:// to {host} is not allowed", hint="use https://, or --allow-plaintext")


def _secrets(flags: Flags, destination: Destination | None, known: Draft) -> Changes:
    """Return the keys of a bucket, or the token of an Akosha server, if the user gives any."""
    settings = known.loaded.settings
    stored = Kind.AKOSHA if not settings.cloud_configured else Kind.DIRECTORY if settings.directory else Kind.BUCKET
    kind = destination.kind if destination else stored
    if kind is Kind.DIRECTORY:
        return {}
    names = (HTTP_TOKEN,) if kind is Kind.AKOSHA else S3_KEYS[:2]
    replaced: Changes = {} if kind is Kind.AKOSHA else {S3_KEYS[2]: None}  # a session token belongs to its keys
    if flags.keys_from_stdin:
        lines = {key: sys.stdin.readline().strip() for key in names}
        if empty := [key for key, line in lines.items() if not line]:
            raise SettingsError(f"standard input has no line for {empty[0]}", hint=f"write {' and '.join(names)}")
        return {**lines, **replaced}
    in_shell: Changes = {key: os.environ.get(overriding_variable(key, os.environ), "") for key in names}
    expires = kind is Kind.BUCKET and "AWS_SESSION_TOKEN" in os.environ
    if all(in_shell.values()) and not expires:
        if in_shell == _stored(known, names):
            return {}
        variables = " and ".join(overriding_variable(key, os.environ) for key in names)
        question = f"Store the value of {variables}, which the service does not see, in credentials.yaml?"
        return in_shell | replaced if flags.yes or dialogue.confirm(question, default=True) else {}
    if kind is Kind.AKOSHA:
        return _token(flags, destination, settings)
    if flags.yes or destination is None:
        return {}
    otherwise = "the stored one" if known.s3_credentials else "the AWS configuration in ~/.aws"
    access_key = dialogue.ask(f"Access key ID (empty: {otherwise})", str, default="")
    if not access_key:
        return {}
    secret = dialogue.ask_secret("Secret access key (not shown)", required=True)
    return {S3_KEYS[0]: access_key, S3_KEYS[1]: secret, **replaced}


def _token(flags: Flags, destination: Destination | None, settings: Settings) -> Changes:
    """Ask for the token of an Akosha server. A stored token is not sent to another server than before."""
    if destination is None:
        return {}
    is_new = destination.settings["http_endpoint"] != settings.http_endpoint
    has_token = bool(settings.http_token.get_secret_value()) and not is_new
    question = f"Token of the server (not shown; empty: {'the stored one' if has_token else 'none'})"
    token = "" if flags.yes else dialogue.ask_secret(question)
    return {HTTP_TOKEN: token} if token else {HTTP_TOKEN: None} if is_new else {}


def _stored(known: Draft, names: Sequence[str]) -> Changes:
    keys = known.s3_credentials
    s3 = dict(zip(S3_KEYS, (keys.access_key_id, keys.secret_access_key), strict=False)) if keys else {}
    held = {HTTP_TOKEN: known.loaded.settings.http_token.get_secret_value(), **s3}
    return {name: held.get(name) for name in names}


def _system_id(flags: Flags, settings: Settings) -> Changes:
    """Return the system ID if it is given. It is asked for before the first start only, which stores the default."""
    if flags.system_id is not None:
        return {"system_id": flags.system_id}
    is_new = not settings.system_id and not (settings.agent_state_dir / "identity.json").exists()
    if flags.yes:
        return {}
    if not is_new:
        named = f"is called {settings.system_id}" if settings.system_id else "has a name already (akosha-agent status)"
        dialogue.say(f"this machine {named}; --system-id NAME changes it")
        return {}
    default = sanitise_system_id(socket.gethostname())
    chosen = dialogue.ask("Name of this machine", system_id_of, default=default)
    return {} if chosen == default else {"system_id": chosen}


def system_id_of(answer: str) -> str:
    """Return the answer if it is a system ID. Raises ValueError."""
    try:
        possible = sanitise_system_id(answer)
    except NamingError:
        possible = ""
    if possible != answer:
        example = f"; for example {possible}" if possible else ""
        raise ValueError(f"must have letters, digits, - and _ only, at most {MAX_GENERATED_ID}{example}")
    return answer
