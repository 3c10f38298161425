"""The check of each NATS server. It publishes nothing on a subject that programs act on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.application.sync.bus_recovery import BUS
from agent.bootstrap.buses import agent_nats_options
from agent.domain.errors import StateError
from agent.domain.identity import Identity
from agent.domain.naming import (
    archive_subject,
    control_subject,
    progress_subject,
    request_subject,
    result_subject,
    session_subject,
)
from agent.domain.routing import CLOUD
from agent.entrypoints.doctor.context import DoctorContext, in_thread
from agent.entrypoints.doctor.findings import Finding, error, from_error, ok, skipped, warning
from agent.settings import Settings, without_credentials

if TYPE_CHECKING:
    from agent.adapters.nats.server_facts import NatsFacts

NATS = "NATS"

ADDRESS = "check akosha_agent_nats_url, and that the server is running"
ENABLE = "ask the server's operator to enable JetStream for this account, and to permit this user to use it"
PERMIT = "ask the server's operator to permit this user to create it; the agent's log has the server's response"
START = "start the agent (akosha-agent service start, or akosha-agent run): it creates the stream"


async def nats(context: DoctorContext) -> list[Finding]:
    """One or more findings per server. If another server is reachable, an unreachable one is only a warning."""
    settings = context.settings
    if not settings.over_nats:
        return [skipped(NATS, "akosha_agent_nats_url is not set: events stay on this machine")]
    from agent.adapters.nats import server_facts  # noqa: PLC0415 - imports the NATS client

    identity = await context.identity()
    options = agent_nats_options(settings, identity, "doctor")
    options = replace(options, patience=replace(options.patience, connect=context.step_seconds))
    servers = await server_facts.examine(options, identity.system_id)
    report = warning if any(facts.refused is None for facts in servers) else error
    found: list[Finding] = []
    for facts in servers:
        if facts.refused is not None:
            found.append(report(NATS, facts.refused.message, hint=facts.refused.hint or ADDRESS))
        else:
            problems = list(_problems(facts, settings, identity))
            found += problems or [await _without_problems(context, facts)]
    return found


async def _without_problems(context: DoctorContext, facts: "NatsFacts") -> Finding:
    server = without_credentials(facts.location)
    permitted = (
        "the server does not report permissions" if facts.publish is None else "all needed permissions are granted"
    )
    if facts.has_stream is None:
        return ok(NATS, f"{server}, version {facts.version}: this user may not examine the stream; {permitted}")
    if facts.has_stream:
        return ok(NATS, f"{server}, version {facts.version}: JetStream and the stream are available; {permitted}")
    missing = f"{server}: JetStream is enabled, but the stream AKOSHA_SYNC does not exist"
    if reason := await _bus_in_use(context):
        return error(NATS, f"{missing}, and the running agent has not created it: {reason}", hint=PERMIT)
    return warning(NATS, missing, hint=START)


def _problems(facts: "NatsFacts", settings: Settings, identity: Identity) -> Iterator[Finding]:
    server = without_credentials(facts.location)
    for problem in (facts.jetstream, facts.stream):
        if problem is not None:
            finding = from_error(NATS, problem, hint=ENABLE)
            yield replace(finding, found=f"{server}: {finding.found}")
    if facts.lacks:
        yield warning(NATS, f"{server}: the stream AKOSHA_SYNC {'; '.join(facts.lacks)}", hint=facts.cure)
    published = list(_published(identity, make_stream=facts.has_stream is False))
    subscribed = list(_subscribed(settings, identity))
    for rights, verb, subjects in (
        (facts.publish, "publish", published),
        (facts.subscribe, "subscribe to", subscribed),
    ):
        refused = ", ".join(subject for subject in subjects if rights is not None and not rights.permit(subject))
        if refused:
            hint = f"allow this user to {verb} {refused} in the server's permissions"
            yield error(NATS, f"{server}: no permission to {verb} {refused}", hint=hint)


def _published(identity: Identity, *, make_stream: bool) -> Iterator[str]:
    """Yield one subject of each kind on which the agent publishes."""
    from agent.adapters.nats.stream import STREAM  # noqa: PLC0415 - as above

    system = identity.system_id
    yield request_subject(system, CLOUD)
    yield session_subject(system)
    yield result_subject(system, "succeeded")
    yield progress_subject(system)
    yield archive_subject(system, "verified")
    yield f"$JS.API.DIRECT.GET.{STREAM}.{session_subject(system)}"
    yield f"$JS.API.DIRECT.GET.{STREAM}.{result_subject(system, 'succeeded')}"
    if make_stream:
        yield f"$JS.API.STREAM.CREATE.{STREAM}"


def _subscribed(settings: Settings, identity: Identity) -> Iterator[str]:
    system = identity.system_id
    yield f"_INBOX.{system}.any"
    yield from (request_subject(system, method) for method in settings.route)
    yield session_subject(system)
    yield progress_subject(system)
    if settings.agent_remote_control:
        yield control_subject(system, "sync")


async def _bus_in_use(context: DoctorContext) -> str:
    """Return what the running agent has recorded about its bus; "" if no agent is running or nothing is recorded."""
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
        return ""  # reported by the check of the ledger
