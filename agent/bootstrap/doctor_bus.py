"""What `doctor` looks at NATS with. Nothing is published on a subject that anybody acts on."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent.bootstrap.buses import nats_options
from agent.domain.identity import Identity
from agent.domain.naming import control_subject, progress_subject, request_subject, result_subject, session_subject
from agent.settings import Settings

if TYPE_CHECKING:
    from agent.adapters.nats.server_facts import NatsFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """One NATS server: `problems` are (what is wrong, its cure); `rights_known` is false where it tells no rights."""

    place: str
    reached: bool
    version: str = ""
    problems: tuple[tuple[str, str], ...] = ()
    has_stream: bool = False
    rights_known: bool = True


async def examine_servers(settings: Settings, identity: Identity, *, seconds: float) -> list[ServerInfo]:
    """Look at each of the servers, for so long at each step. Raises SettingsError for files that are of no use."""
    from agent.adapters.nats import server_facts  # noqa: PLC0415 - loaded where there is a NATS to talk to

    options = nats_options(settings, "akosha-agent doctor")
    options = replace(options, patience=replace(options.patience, connect=seconds))
    return [_server(facts, settings, identity) for facts in await server_facts.examine(options)]


def _server(facts: "NatsFacts", settings: Settings, identity: Identity) -> ServerInfo:
    if facts.refused is not None:
        problem = (facts.refused.message, facts.refused.hint)
        return ServerInfo(place=facts.place, reached=False, problems=(problem,))
    problems = [(error.message, error.hint) for error in (facts.jetstream, facts.stream) if error is not None]
    said = list(_said(settings, identity, make_stream=not facts.has_stream))
    heard = list(_heard(settings, identity))
    for rights, verb, subjects in ((facts.publish, "publish", said), (facts.subscribe, "subscribe to", heard)):
        refused = ", ".join(subject for subject in subjects if rights is not None and not rights.permit(subject))
        if refused:
            cure = f"allow this user to {verb} {refused} in the server's permissions"
            problems.append((f"it may not {verb} {refused}", cure))
    return ServerInfo(
        place=facts.place,
        reached=True,
        version=facts.version,
        problems=tuple(problems),
        has_stream=facts.has_stream,
        rights_known=facts.publish is not None,
    )


def _said(settings: Settings, identity: Identity, *, make_stream: bool) -> Iterator[str]:
    """Yield subjects that the agent publishes on, one of each kind."""
    from agent.adapters.nats.stream import STREAM  # noqa: PLC0415 - as above

    system = identity.system_id
    yield session_subject(system)
    yield result_subject(system, "succeeded")
    yield progress_subject(system)
    yield f"$JS.API.STREAM.INFO.{STREAM}"
    if make_stream:
        yield f"$JS.API.STREAM.CREATE.{STREAM}"
    for method in settings.route:
        durable, pattern = identity.durable(method), request_subject(system, method)
        yield pattern
        yield f"$JS.API.CONSUMER.INFO.{STREAM}.{durable}"
        yield f"$JS.API.CONSUMER.CREATE.{STREAM}.{durable}.{pattern}"
        yield f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{durable}"
        yield f"$JS.ACK.{STREAM}.{durable}.1.1.1.1.1"


def _heard(settings: Settings, identity: Identity) -> Iterator[str]:
    yield "_INBOX.any"
    if settings.agent_remote_control:
        yield control_subject(identity.system_id, "sync")
