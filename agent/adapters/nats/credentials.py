"""Reads the secrets of a login from their files and checks them before nats-py does.

nats-py hangs on some invalid files: in a credentials file without a JWT, it searches endlessly, on the event loop.
"""

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import nkeys
from nats.aio.client import RawCredentials

from agent.adapters.nats.errors import guarded
from agent.adapters.nats.options import Login, NatsOptions
from agent.domain.errors import SettingsError

MAX_BYTES = 64 * 1024

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\r?\n([\w.-]+)\r?\n")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\r?\n(S[A-Z2-7]+)\r?\n")


@dataclass(frozen=True, slots=True)
class LoginSecrets:
    """The text of a credentials file, or a seed; neither if the login uses something else."""

    credentials: RawCredentials | None = field(default=None, repr=False)
    seed: str | None = field(default=None, repr=False)


def load(options: NatsOptions) -> tuple[ssl.SSLContext, LoginSecrets]:
    """Check and read all files of the options. Blocks on files: call it in a thread. Raises SettingsError."""
    options.check()
    return options.tls.context(), read(options.login)


def read(login: Login) -> LoginSecrets:
    """Return the secrets. Blocks on files: call it in a thread. Raises SettingsError if a file is invalid."""
    if login.credentials_file is not None:
        key = "akosha_agent_nats_credentials_file"
        text = _text(login.credentials_file, key)
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise SettingsError(
                f"{key}: {login.credentials_file} does not contain a user JWT and seed", hint="use a .creds file"
            )
        _check_seed(seed[1], key)
        return LoginSecrets(credentials=RawCredentials(text))
    if login.nkey_file is not None:
        key = "akosha_agent_nats_nkey_file"
        seed_text = _text(login.nkey_file, key).strip()
        _check_seed(seed_text, key)
        return LoginSecrets(seed=seed_text)
    if login.nkey_seed:
        _check_seed(login.nkey_seed, "akosha_agent_nats_nkey_seed")
        return LoginSecrets(seed=login.nkey_seed)
    return LoginSecrets()


def _text(path: Path, key: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError as error:
        raise SettingsError(f"{key}: {path} cannot be read: {error.strerror}", hint="check the path") from error


def _check_seed(seed: str, key: str) -> None:
    invalid = SettingsError(f"{key}: the seed is invalid", hint="a user's seed begins with SU")
    with guarded(lambda _: invalid, hidden=True):  # the cause would show the seed
        nkeys.from_seed(bytearray(seed.encode())).wipe()
