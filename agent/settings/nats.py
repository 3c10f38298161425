"""The settings of NATS: where events flow, as whom and how safely.

Fields are validated in their order, defaults too: a rule among several is checked at the last of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, SecretStr, ValidationInfo, field_serializer, field_validator

from agent.settings import endpoints
from agent.settings.validators import (
    Bus,
    EarlierFieldError,
    File,
    Line,
    NatsUrl,
    NkeySeed,
    Password,
)

# A way to log in, by the key that stands for it. A password belongs to its user.
_LOGINS = (
    "agent_nats_user",
    "agent_nats_token",
    "agent_nats_credentials_file",
    "agent_nats_nkey_seed",
    "agent_nats_nkey_file",
)


class Nats(BaseModel):
    """A part of the tree, with the rules among its own keys and what follows from them."""

    agent_nats_url: NatsUrl = Field(
        default="", repr=False, description="Address of a NATS server; several with commas."
    )
    agent_bus: Bus = Field(
        default="auto",
        description="Where events flow: in this process or over NATS; auto: NATS where its address is set.",
    )
    agent_nats_user: Line = Field(default="", description="User name at the NATS server.")
    agent_nats_password: Password = Field(default=SecretStr(""), description="Password of that user.")
    agent_nats_token: Password = Field(
        default=SecretStr(""), description="Token for the NATS server, in place of a user and a password."
    )
    agent_nats_credentials_file: File = Field(
        default=None, description="File of NATS credentials (.creds: a JWT and a seed), to log in with."
    )
    agent_nats_nkey_seed: NkeySeed = Field(
        default=SecretStr(""), description="Seed of a NATS user's NKey (SU...), to log in with."
    )
    agent_nats_nkey_file: File = Field(default=None, description="File that holds such a seed, to log in with.")
    agent_nats_ca_file: File = Field(
        default=None, description="Certificates (PEM) of the authority to trust, in place of the system's."
    )
    agent_nats_certificate_file: File = Field(
        default=None, description="Certificate chain (PEM) to show to the NATS server."
    )
    agent_nats_key_file: File = Field(default=None, description="Key (PEM) of that certificate.")
    agent_nats_tls_first: bool = Field(
        default=False, description="Begin with the TLS handshake, before the server's greeting."
    )
    agent_nats_allow_plaintext: bool = Field(
        default=False,
        description="Allow a password or token over unencrypted nats:// or ws:// to another machine.",
    )
    agent_remote_control: bool = Field(
        default=False, description="Let others on NATS ask for the status and for a sync."
    )

    @field_validator("agent_bus")
    @classmethod
    def _bus_has_address(cls, value: str, info: ValidationInfo) -> str:
        if value == "nats" and info.data.get("agent_nats_url") == "":
            raise ValueError("nats is allowed only with an akosha_agent_nats_url")
        return value

    @field_validator(*_LOGINS)
    @classmethod
    def _only_login(cls, value: object, info: ValidationInfo) -> object:
        other = next(_logins(info.data), None) if _text(value) else None
        if other is not None:
            raise ValueError(f"one way to log in is allowed, and there is {other} too")
        return value

    @field_validator("agent_nats_password")
    @classmethod
    def _password_has_user(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        user = info.data.get("agent_nats_user")
        if _text(value) and user == "":
            raise ValueError("allowed only with an akosha_agent_nats_user")
        if user and not _text(value):
            raise EarlierFieldError("agent_nats_user", "allowed only with an akosha_agent_nats_password")
        return value

    @field_validator("agent_nats_key_file")
    @classmethod
    def _key_has_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if "agent_nats_certificate_file" not in info.data:  # it was refused itself
            return value
        certificate = info.data["agent_nats_certificate_file"]
        if value is not None and certificate is None:
            raise ValueError("allowed only with an akosha_agent_nats_certificate_file")
        if value is None and certificate is not None:
            raise EarlierFieldError("agent_nats_certificate_file", "allowed only with an akosha_agent_nats_key_file")
        return value

    @field_validator("agent_nats_allow_plaintext")
    @classmethod
    def _secrets_are_encrypted(cls, value: bool, info: ValidationInfo) -> bool:
        exposed = None if value else _exposed(info.data)
        if exposed is not None:
            raise EarlierFieldError(
                exposed,
                "a password or token, unencrypted to another machine; allowed with tls:// or wss:// in "
                "akosha_agent_nats_url, or with akosha_agent_nats_allow_plaintext: true",
            )
        return value

    @field_serializer("agent_nats_url", when_used="json")
    def _nats_url_shown(self, value: str) -> str:
        return endpoints.without_credentials(value)

    @property
    def over_nats(self) -> bool:
        """Whether events flow over NATS."""
        return bool(self.agent_nats_url) and self.agent_bus != "memory"


def _text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value or "")


def _logins(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what there is to log in with, among the keys that have been read."""
    if any(map(endpoints.has_user_info, endpoints.nats_servers(found.get("agent_nats_url", "")))):
        yield "a user or token in akosha_agent_nats_url"
    yield from (f"akosha_{key}" for key in _LOGINS if _text(found.get(key)))


def _exposed(found: Mapping[str, Any]) -> str | None:
    """Return the key whose secret would go unencrypted to another machine. Keys and JWTs are proven, not sent."""
    servers = endpoints.nats_servers(found.get("agent_nats_url", ""))
    in_plaintext = [server for server in servers if endpoints.is_plaintext(server)]
    if any(map(endpoints.has_user_info, in_plaintext)):
        return "agent_nats_url"
    secrets = (key for key in ("agent_nats_password", "agent_nats_token") if _text(found.get(key)))
    return next(secrets, None) if in_plaintext else None
