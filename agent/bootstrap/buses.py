"""Builds the event buses."""

from agent.adapters.failover_bus import FailoverBus
from agent.adapters.memory_bus import MemoryBus
from agent.adapters.nats import Limits, Login, NatsOptions, Patience, Tls
from agent.adapters.wire import CloudEventsCodec
from agent.ports import Clock, EventBus, Responder
from agent.settings import Settings, check_private, nats_servers

NATS = "nats"

PATIENCE = Patience()
LIMITS = Limits()

_PRIVATE = ("agent_nats_credentials_file", "agent_nats_nkey_file", "agent_nats_key_file")


async def run_buses(settings: Settings, name: str, clock: Clock) -> tuple[EventBus, Responder | None]:
    """Return the bus of a running agent, and the responder for remote control, if that is enabled.

    Raises SettingsError for invalid files of the NATS settings. An unreachable NATS server is not an error.
    """
    if not settings.over_nats:
        return _memory(clock), None
    from agent.adapters.nats.bus import NatsBus  # noqa: PLC0415 - loaded only if NATS is used

    wait_for_connection = settings.agent_bus == NATS
    nats = await NatsBus.open(
        check_nats_options(nats_options(settings, name)),
        CloudEventsCodec(),
        clock=clock,
        wait_for_connection=wait_for_connection,
    )
    control = nats if settings.agent_remote_control else None
    if wait_for_connection:
        return nats, control
    return FailoverBus(nats, _memory(clock), progress_interval_seconds=PATIENCE.ack_wait / 3), control


def single_sync_buses(settings: Settings, name: str, clock: Clock) -> tuple[EventBus, EventBus]:
    """Return the in-process bus for the request of a single sync, and the bus for its result."""
    local = _memory(clock)
    if not settings.over_nats:
        return local, local
    from agent.adapters.nats.bus import NatsBus  # noqa: PLC0415 - as above

    return local, NatsBus.begin(check_nats_options(nats_options(settings, name)), CloudEventsCodec(), clock=clock)


def nats_options(settings: Settings, name: str, *, own_durables: bool = True) -> NatsOptions:
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
        own_durables=own_durables,
        check=lambda: _check_files(s),
    )


def check_nats_options(options: NatsOptions) -> NatsOptions:
    """Check the files that the options name, so that the user sees problems at the start; return the options.

    Raises SettingsError. Reads files, which is fast on a local disk.
    """
    from agent.adapters.nats import credentials  # noqa: PLC0415 - as above

    options.check()
    options.tls.context()
    credentials.read(options.login)
    return options


def _check_files(settings: Settings) -> None:
    for key in _PRIVATE:
        path = getattr(settings, key)
        if path is not None:
            check_private(path, key)


def _memory(clock: Clock) -> MemoryBus:
    return MemoryBus(clock, ack_wait_seconds=PATIENCE.ack_wait)
