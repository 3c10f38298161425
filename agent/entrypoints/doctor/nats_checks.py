"""The check of each NATS server. Nothing is published on a subject that a program acts on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.application.sync.bus_recovery import BUS
from agent.bootstrap.buses import nats_options
from agent.domain.errors import StateError
from agent.domain.identity import Identity
from agent.domain.naming import control_subject, progress_subject, request_subject, result_subject, session_subject
from agent.entrypoints.doctor.context import DoctorContext, in_thread
from agent.entrypoints.doctor.findings import Finding, error, from_error, ok, skipped, warning
from agent.settings import Settings, without_credentials

if TYPE_CHECKING:
    from agent.adapters.nats.server_facts import NatsFacts

NATS = "NATS"

ADDRESS = "check akosha_agent_nats_url, and that the server runs"
ENABLE = "ask the server's operator: JetStream must be on for this account, and let this user in"
PERMIT = "ask the server's operator to let this user make it; the agent's log says what the server answers"
START = "start the agent (akosha-agent service start, or akosha-agent run): it makes the stream"


async def nats(context: DoctorContext) -> list[Finding]:
    """One finding or more for each server. One of several that cannot be reached is a warning."""
    settings = context.settings
    if not settings.over_nats:
        return [skipped(NATS, "no akosha_agent_nats_url is set: events stay on this machine")]
    from agent.adapters.nats import server_facts  # noqa: PLC0415 - loaded where there is a NATS server

    options = nats_options(settings, "akosha-agent doctor")
    options = replace(options, patience=replace(options.patience, connect=context.step_seconds))
    servers = await server_facts.examine(options)
    identity = await context.identity()
    report = warning if any(facts.refused is None for facts in servers) else error
    found: list[Finding] = []
    for facts in servers:
        if facts.refused is not None:
            found.append(report(NATS, facts.refused.message, cure=facts.refused.hint or ADDRESS))
        else:
            problems = list(_problems(facts, settings, identity))
            found += problems or [await _without_problems(context, facts)]
    return found


async def _without_problems(context: DoctorContext, facts: "NatsFacts") -> Finding:
    server = without_credentials(facts.location)
    if facts.has_stream:
        permitted = (
            "the server does not report the permissions" if facts.publish is None else "all that is needed is permitted"
        )
        return ok(NATS, f"{server}, version {facts.version}: JetStream and the stream are there; {permitted}")
    missing = f"{server}: JetStream is on, the stream AKOSHA_SYNC is not there"
    if reason := await _bus_in_use(context):
        return error(NATS, f"{missing}, and the agent that runs has not made it: {reason}", cure=PERMIT)
    return warning(NATS, missing, cure=START)


def _problems(facts: "NatsFacts", settings: Settings, identity: Identity) -> Iterator[Finding]:
    server = without_credentials(facts.location)
    for problem in (facts.jetstream, facts.stream):
        if problem is not None:
            finding = from_error(NATS, problem, cure=ENABLE)
            yield replace(finding, found=f"{server}: {finding.found}")
    published = list(_published(settings, identity, make_stream=not facts.has_stream))
    subscribed = list(_subscribed(settings, identity))
    for rights, verb, subjects in (
        (facts.publish, "publish", published),
        (facts.subscribe, "subscribe to", subscribed),
    ):
        refused = ", ".join(subject for subject in subjects if rights is not None and not rights.permit(subject))
        if refused:
            cure = f"allow this user to {verb} {refused} in the server's permissions"
            yield error(NATS, f"{server}: it may not {verb} {refused}", cure=cure)


def _published(settings: Settings, identity: Identity, *, make_stream: bool) -> Iterator[str]:
    """Yield one subject of each kind that the agent publishes on."""
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


def _subscribed(settings: Settings, identity: Identity) -> Iterator[str]:
    yield "_INBOX.any"
    if settings.agent_remote_control:
        yield control_subject(identity.system_id, "sync")


async def _bus_in_use(context: DoctorContext) -> str:
    """Return what the running agent has recorded of its bus; "" where none runs, or nothing is known."""
    home = context.home
    try:
        if await in_thread(home.holder) is None or not await home.has_ledger():
            return ""
        ledger = await home.read_ledger()
        try:
            return (await ledger.notes()).get(BUS, "")
        finally:
            await ledger.aclose()
    except StateError:
        return ""  # reported by the ledger's own check
