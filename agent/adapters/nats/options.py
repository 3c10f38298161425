"""The options of a connection to NATS: servers, login, TLS, time limits and the stream's configuration."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agent.domain.errors import SettingsError
from agent.domain.naming import EVENT_MAX_AGE

MEBIBYTE = 2**20
DAY = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """The login; at most one kind is set. Files are read for each connection, because they may be renewed."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials_file: Path | None = None
    nkey_seed: str = field(default="", repr=False)
    nkey_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS: `ca_file` replaces the system's CAs; the certificate is the client's own.

    `first`: the TLS handshake comes before the server's INFO.
    """

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    first: bool = False

    def context(self) -> ssl.SSLContext:
        """Return the TLS context. Blocks on files: call it in a thread. Raises SettingsError if a file is invalid."""
        if self.ca_file is None and self.certificate_file is None:
            return _default_context(_default_ca_files())
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise SettingsError(
                f"akosha_agent_nats_ca_file: {self.ca_file} is invalid: {error.strerror or error}",
                hint="it must contain certificates in PEM format",
            ) from error
        if self.certificate_file is not None:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file, password=lambda: "")
            except OSError as error:
                raise SettingsError(
                    f"akosha_agent_nats_certificate_file: {self.certificate_file} or its key {self.key_file} is "
                    f"invalid: {error.strerror or error}",
                    hint="use a certificate chain and its unencrypted key, both in PEM format",
                ) from error
        return context


@lru_cache(maxsize=1)
def _default_context(_: tuple[tuple[Path, int], ...]) -> ssl.SSLContext:
    """Return a context with the system's CAs, loaded again if their files changed.

    Loading takes 40 ms of processor time, which each attempt to connect would spend while the server is down.
    """
    return ssl.create_default_context()


def _default_ca_files() -> tuple[tuple[Path, int], ...]:
    """Return the files of the system's CAs with their modification times."""
    paths = ssl.get_default_verify_paths()
    files = (Path(name) for name in (paths.cafile, paths.capath) if name)
    return tuple((file, file.stat().st_mtime_ns) for file in files if file.exists())


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Time limits, in seconds."""

    connect: float = 5.0
    """Of one attempt to connect, and of one request."""
    ping: float = 20.0
    """Interval between pings."""
    ping_timeout: float = 10.0
    reconnect: float = 2.0
    """Limit of the first pause between attempts to connect; it doubles up to `reconnect_max`."""
    reconnect_max: float = 30.0
    ack_wait: float = 10.0
    """How long the server waits for an ack before it delivers an event again; a consumer reports progress three times
    as often. An event that the server sent to a dead connection waits this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The configuration of a stream that the agent creates (seconds, bytes).

    `inactive`: after this long without use, the server deletes a durable consumer. From 2.15, nats-server limits a
    stream without `max_consumers` to 1,000.
    """

    max_age: float = EVENT_MAX_AGE.total_seconds()
    max_bytes: int = 256 * MEBIBYTE
    duplicate_window: float = 600.0
    max_consumers: int = 10_000
    inactive: float = 30 * DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsOptions:
    """All options of a connection. `name` identifies the client on the server.

    `check` is called in a thread before each attempt. Replies arrive on subjects below `inbox_prefix`: one for each
    system, so that the server's permissions can separate them.
    """

    servers: tuple[str, ...] = field(repr=False)
    name: str
    login: Login = Login()
    tls: Tls = Tls()
    patience: Patience = Patience()
    limits: Limits = Limits()
    inbox_prefix: str = "_INBOX"
    check: Callable[[], None] = lambda: None

    @property
    def location(self) -> str:
        """The server URLs without user and password."""
        return ", ".join(Server.of(url).location for url in self.servers)


@dataclass(frozen=True, slots=True)
class Server:
    """A parsed server URL. User and password are percent-decoded; `repr` omits them."""

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
