"""The secrets of a login, read out of their files and looked at before nats-py does: some it does not survive.

A credentials file without a JWT, for one, has nats-py look for it endlessly, on the event loop.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import nkeys
from nats.aio.client import RawCredentials

from agent.adapters.nats.errors import guarded
from agent.adapters.nats.options import Login
from agent.domain.errors import SettingsError

MAX_BYTES = 64 * 1024

_JWT = re.compile(r"-----BEGIN NATS USER JWT-----\r?\n([\w.-]+)\r?\n")
_SEED = re.compile(r"-----BEGIN USER NKEY SEED-----\r?\n(S[A-Z2-7]+)\r?\n")


@dataclass(frozen=True, slots=True)
class Proof:
    """What nats-py is given: a credentials file's text, or a seed; neither where another way to log in is set."""

    credentials: RawCredentials | None = field(default=None, repr=False)
    seed: str | None = field(default=None, repr=False)


def read(login: Login) -> Proof:
    """Return the proof. Reads files: call it off the event loop. Raises SettingsError for invalid ones."""
    if login.credentials_file is not None:
        key = "akosha_agent_nats_credentials_file"
        text = _text(login.credentials_file, key)
        jwt, seed = _JWT.search(text), _SEED.search(text)
        if jwt is None or seed is None:
            raise SettingsError(
                f"{key}: {login.credentials_file} holds no user's JWT and seed", hint="it must be a .creds file"
            )
        _check_seed(seed[1], key)
        return Proof(credentials=RawCredentials(text))
    if login.nkey_file is not None:
        key = "akosha_agent_nats_nkey_file"
        seed_text = _text(login.nkey_file, key).strip()
        _check_seed(seed_text, key)
        return Proof(seed=seed_text)
    if login.nkey_seed:
        _check_seed(login.nkey_seed, "akosha_agent_nats_nkey_seed")
        return Proof(seed=login.nkey_seed)
    return Proof()


def _text(path: Path, key: str) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError as error:
        raise SettingsError(f"{key}: {path} cannot be read: {error.strerror}", hint="check the path") from error


def _check_seed(seed: str, key: str) -> None:
    wrong = SettingsError(f"{key}: the seed in it is none", hint="a user's seed begins with SU")
    with guarded(lambda _: wrong, hidden=True):  # the cause would show the seed
        nkeys.from_seed(bytearray(seed.encode())).wipe()
