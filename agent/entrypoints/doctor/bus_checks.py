"""The bus between machines."""

from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Finding, error, ok, skipped, warning
from agent.settings import without_credentials

NATS = "NATS"

ADDRESS = "check akosha_agent_nats_url, and that the server runs"
ENABLE = "ask the server's operator: JetStream must be on for this account, and let this user in"
LET_IT = "ask the server's operator to let this user make it; the agent's log says what the server answers"
MADE = "start the agent (akosha-agent service start, or akosha-agent run): it makes the stream"


async def nats(ground: CheckContext) -> list[Finding]:
    """Each of the servers: one of several that is out of reach is a warning, for the others do."""
    if not ground.settings.over_nats:
        return [skipped(NATS, "no akosha_agent_nats_url is set: events stay on this machine")]
    servers = await ground.examination.nats()
    reached = [server for server in servers if server.reached]
    found: list[Finding] = []
    for server in servers:
        place = without_credentials(server.place)
        if not server.reached:
            ((text, cure),) = server.problems
            report = warning if reached else error
            found.append(report(NATS, text, cure=cure or ADDRESS))
            continue
        found += [error(NATS, f"{place}: {text}", cure=cure or ENABLE) for text, cure in server.problems]
        if server.problems:
            continue
        if not server.has_stream:
            found.append(await _streamless(ground, place))
            continue
        rights = "all that is needed is permitted" if server.rights_known else "it does not tell what is permitted"
        found.append(ok(NATS, f"{place}, version {server.version}: JetStream and the stream are there; {rights}"))
    return found


async def _streamless(ground: CheckContext, place: str) -> Finding:
    """An agent that starts makes the stream; where one runs and has not, its own words say why."""
    missing = f"{place}: JetStream is on, the stream AKOSHA_SYNC is not there"
    if said := await ground.examination.bus_in_use():
        return error(NATS, f"{missing}, and the agent that runs has not made it: {said}", cure=LET_IT)
    return warning(NATS, missing, cure=MADE)
