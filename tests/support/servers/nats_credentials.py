"""The users of a nats-server: text for its configuration, and the secrets for its clients.

    with running_nats(folder, config=password_config()) as server: ...       # USER, PASSWORD
    with running_nats(folder, config=tls_config(authority)) as server: ...   # and websocket=tls_config(authority)

Every secret except the keys contains `canary`.
"""

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import nkeys
import trustme

from tests.support.servers.s3 import Authority

USER = "agent"
PASSWORD = "canary-password+that/never=appears"
TOKEN = "canary-token+that/never=appears"

PLAIN_WEBSOCKET = "no_tls: true"
NO_JETSTREAM = {"publish": {"deny": ["$JS.API.>"]}}
"""Permissions of a user who may publish and subscribe, but not use JetStream."""

_NO_LIMIT = -1


@dataclass(frozen=True)
class ClientCertificate:
    """A client's certificate and key, and their CA, which is not the server's."""

    folder: Path
    ca: Path = field(init=False)
    chain: Path = field(init=False)
    key: Path = field(init=False)

    def __post_init__(self):
        for name in ("ca", "chain", "key"):
            object.__setattr__(self, name, self.folder / f"client_{name}.pem")
        authority = trustme.CA()
        client = authority.issue_cert("agent@example.org", common_name="agent")
        authority.cert_pem.write_to_path(str(self.ca))
        client.private_key_pem.write_to_path(str(self.key))
        for blob in client.cert_chain_pems:
            blob.write_to_path(str(self.chain), append=True)


@dataclass(frozen=True)
class NKey:
    """An Ed25519 key in NATS' format: `seed` is the secret (S...), `public` the public key."""

    prefix: int = nkeys.PREFIX_BYTE_USER
    seed: str = field(init=False, repr=False)
    public: str = field(init=False)

    def __post_init__(self):
        seed = nkeys.encode_seed(os.urandom(32), self.prefix)
        object.__setattr__(self, "seed", seed.decode())
        object.__setattr__(self, "public", nkeys.from_seed(seed).public_key.decode())

    def sign(self, data: bytes) -> bytes:
        return nkeys.from_seed(self.seed.encode()).sign(data)


class Operator:
    """A server's operator with one account, which signs the users' JWTs; the server does not know the users.

    `jetstream` False: the account may not use JetStream.
    """

    def __init__(self, *, jetstream: bool = True) -> None:
        self._key = NKey(nkeys.PREFIX_BYTE_OPERATOR)
        self._account, self._system = NKey(nkeys.PREFIX_BYTE_ACCOUNT), NKey(nkeys.PREFIX_BYTE_ACCOUNT)
        limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), _NO_LIMIT)
        stored = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _NO_LIMIT)
        account = {"type": "account", "limits": {"wildcards": True, **limits, **(stored if jetstream else {})}}
        system = {"type": "account", "limits": {"wildcards": True, **limits}}
        accounts = {
            self._account.public: _token(self._key, self._account.public, account),
            self._system.public: _token(self._key, self._system.public, system),
        }
        self.config = _text(
            operator=_token(self._key, self._key.public, {"type": "operator"}),
            system_account=self._system.public,
            resolver="MEMORY",
            resolver_preload=accounts,
        )

    def credentials(self, *, permissions: dict | None = None, expires: float | None = None) -> str:
        """Return the text of a `.creds` file for a new user; `expires`: seconds from now, negative if expired."""
        user = NKey()
        limits = dict.fromkeys(("subs", "data", "payload"), _NO_LIMIT)
        names = {"publish": "pub", "subscribe": "sub"}
        allowed = {names[verb]: subjects for verb, subjects in (permissions or {}).items()}
        token = _token(self._account, user.public, {"type": "user", **limits, **allowed}, expires)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


def tls_config(
    authority: Authority, *, clients: ClientCertificate | None = None, handshake_first: bool | str = False
) -> str:
    """TLS with the authority's certificate; `clients`: require certificates of that CA. Also valid in `websocket`."""
    block: dict[str, object] = {"cert_file": str(authority.chain), "key_file": str(authority.key)}
    if clients:
        block |= {"ca_file": str(clients.ca), "verify": True}
    if handshake_first:
        block |= {"handshake_first": handshake_first}
    return _text(tls=block)


def password_config(*, permissions: dict | None = None) -> str:
    """Accept USER with PASSWORD."""
    return _users({"user": USER, "password": PASSWORD}, permissions)


def token_config() -> str:
    """Accept clients with TOKEN."""
    return _text(authorization={"token": TOKEN})


def nkey_config(key: NKey, *, permissions: dict | None = None) -> str:
    """Accept clients with the key's seed."""
    return _users({"nkey": key.public}, permissions)


def _users(user: dict, permissions: dict | None) -> str:
    return _text(authorization={"users": [{**user, **({"permissions": permissions} if permissions else {})}]})


def _text(**blocks: object) -> str:
    # The server's configuration language accepts JSON values.
    return "\n".join(f"{name}: {json.dumps(block)}" for name, block in blocks.items())


def _token(issuer: NKey, subject: str, claims: dict, expires: float | None = None) -> str:
    now = int(time.time())
    body = {"iat": now, "iss": issuer.public, "sub": subject, "name": claims["type"], "nats": {"version": 2, **claims}}
    if expires is not None:
        body["exp"] = int(now + expires)
    identity = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(identity).decode().rstrip("=")
    signed = f"{_base64({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_base64(body)}"
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def _base64(value: dict | bytes) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
