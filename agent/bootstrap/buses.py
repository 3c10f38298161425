"""Builds the event buses."""

from dataclasses import dataclass, replace

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus, MemoryDurableBus
from agent.adapters.nats import Limits, Login, NatsOptions, Patience, Tls
from agent.adapters.wire import CloudEventsCodec
from agent.domain.identity import Identity
from agent.ports import Clock, DurableBus, Responder, VolatileBus
from agent.settings import Settings, check_private, nats_servers

NATS = "nats"

PATIENCE = Patience()
LIMITS = Limits()

_PRIVATE = ("agent_nats_credentials_file", "agent_nats_nkey_file", "agent_nats_key_file")


@dataclass(frozen=True, slots=True)
class Buses:
    """The buses of an agent. `responder` is None unless remote control is enabled."""

    volatile: VolatileBus
    durable: DurableBus
    responder: Responder | None = None


async def run_buses(settings: Settings, identity: Identity, clock: Clock) -> Buses:
    """Return the buses of a running agent.

    Raises SettingsError for invalid files of the NATS settings. An unreachable NATS server is not an error.
    """
    if not settings.over_nats:
        return Buses(MemoryBus(clock), MemoryDurableBus(clock))
    from agent.adapters.nats.bus import NatsBuses  # noqa: PLC0415 - loaded only if NATS is used

    wait_for_connection = settings.agent_bus == NATS
    options = check_nats_options(agent_nats_options(settings, identity))
    nats = NatsBuses(options, CloudEventsCodec(), clock=clock, wait_for_connection=wait_for_connection)
    await nats.first_attempt()
    control = nats.volatile if settings.agent_remote_control else None
    if wait_for_connection:
        return Buses(nats.volatile, nats.durable, control)
    return Buses(FailoverBus(nats.volatile, MemoryBus(clock)), nats.durable, control)


def single_sync_buses(settings: Settings, identity: Identity, clock: Clock) -> Buses:
    """Return the in-process bus for the request of a single sync, and the bus for its result."""
    if not settings.over_nats:
        return Buses(MemoryBus(clock), MemoryDurableBus(clock))
    from agent.adapters.nats.bus import NatsBuses  # noqa: PLC0415 - as above

    options = check_nats_options(agent_nats_options(settings, identity))
    return Buses(MemoryBus(clock), NatsBuses(options, CloudEventsCodec(), clock=clock).durable)


def agent_nats_options(settings: Settings, identity: Identity, role: str = "agent") -> NatsOptions:
    """Return the NATS options of an agent, whose replies arrive below a prefix of its system."""
    options = nats_options(settings, f"akosha-agent {identity.durable(role)}")
    return replace(options, inbox_prefix=f"_INBOX.{identity.system_id}")


def nats_options(settings: Settings, name: str) -> NatsOptions:
    """Return the NATS options of the settings. `name` is the connection's name on the server."""
    s = settings
    return NatsOptions(
        servers=nats_servers(s.agent_nats_url),
        name=name,
        login=Login(
            user=s.agent_nats_user,
            password=s.agent_nats_password.get_secret_value(),
            token=s.agent_nats_token.get_secret_value(),
            credentials_file=s.agent_nats_credentials_file,
            nkey_seed=s.agent_nats_nkey_seed.get_secret_value(),
            nkey_file=s.agent_nats_nkey_file,
        ),
        tls=Tls(
            ca_file=s.agent_nats_ca_file,
            certificate_file=s.agent_nats_certificate_file,
            key_file=s.agent_nats_key_file,
            first=s.agent_nats_tls_first,
        ),
        patience=PATIENCE,
        limits=LIMITS,
        check=lambda: _check_files(s),
    )


def check_nats_options(options: NatsOptions) -> NatsOptions:
    """Check the files that the options name, so that the user sees problems at the start; return the options.

    Raises SettingsError. Reads files, which is fast on a local disk.
    """
    from agent.adapters.nats import credentials  # noqa: PLC0415 - as above

    credentials.load(options)
    return options


def _check_files(settings: Settings) -> None:
    for key in _PRIVATE:
        path = getattr(settings, key)
        if path is not None:
            check_private(path, key)
