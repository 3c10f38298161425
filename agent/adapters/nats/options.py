"""What a connection to NATS needs to know: where, as whom, how patiently, and what the stream is to be like."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent.domain.errors import SettingsError
from agent.domain.naming import EVENT_MAX_AGE

MEBIBYTE = 2**20
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who we are to the server; at most one way is set. Files are read at each connection: they may be renewed."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials_file: Path | None = None
    nkey_seed: str = field(default="", repr=False)
    nkey_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Whom to trust (`ca_file` instead of the system's), and our own certificate. `first`: before the greeting."""

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    first: bool = False

    def context(self) -> ssl.SSLContext:
        """Return the TLS context. Reads files: call it off the event loop. Raises SettingsError for invalid ones."""
        try:
            made = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise SettingsError(
                f"akosha_agent_nats_ca_file: {self.ca_file} is invalid: {error.strerror or error}",
                hint="it must hold certificates in PEM form",
            ) from error
        if self.certificate_file is not None:
            try:
                made.load_cert_chain(self.certificate_file, self.key_file, password=lambda: "")
            except OSError as error:
                raise SettingsError(
                    f"akosha_agent_nats_certificate_file: {self.certificate_file} or its key {self.key_file} is "
                    f"invalid: {error.strerror or error}",
                    hint="they must be a certificate chain and its unencrypted key, in PEM form",
                ) from error
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Seconds: for one attempt to connect or one request; between two looks at the connection; for their answer; of
    the first pause between attempts, and the longest; for a handler to stay silent.
    """

    connect: float = 5.0
    ping: float = 20.0
    ping_timeout: float = 10.0
    reconnect: float = 1.0
    reconnect_max: float = 30.0
    ack_wait: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The stream as it is made where there is none (seconds, bytes), and when an unused consumer is forgotten."""

    max_age: float = EVENT_MAX_AGE.total_seconds()
    max_bytes: int = 256 * MEBIBYTE
    duplicate_window: float = 600.0
    inactive: float = 30 * DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsOptions:
    """Everything. `name` is what the server's operator sees; `check` is called in a thread before each attempt.

    `own_durables`: durable names are this process's alone, so what a killed one had in hand is taken over at once.
    """

    servers: tuple[str, ...] = field(repr=False)
    name: str
    login: Login = Login()
    tls: Tls = Tls()
    patience: Patience = Patience()
    limits: Limits = Limits()
    own_durables: bool = False
    check: Callable[[], None] = lambda: None

    @property
    def location(self) -> str:
        """The servers as people and logs may see them: no user, no password."""
        return ", ".join(Server.of(url).location for url in self.servers)


@dataclass(frozen=True, slots=True)
class Server:
    """One address, taken apart: user info in it is percent-decoded, and never shown."""

    scheme: str
    location: str
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)

    @classmethod
    def of(cls, url: str) -> "Server":
        parts = urlsplit(url.strip())
        host = parts.netloc.rpartition("@")[2]
        return cls(
            scheme=parts.scheme,
            location=f"{parts.scheme}://{host}{parts.path}",
            user=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )
