"""How everything stands: what `status` and the coding assistant's status tool show, gathered once for both."""

import asyncio
from dataclasses import asdict, dataclass

from agent.application.status import Status, describe
from agent.domain.databases import Survey
from agent.domain.errors import SnapshotError
from agent.domain.states import TargetRecord
from agent.ports import Standing
from agent.settings import Settings
from agent.wiring import Home


@dataclass(frozen=True, slots=True)
class View:
    """The status; who holds the state directory (`pid`, `command`, `since`); why the databases cannot be seen."""

    status: Status
    running: dict[str, object] | None
    problem: str

    def document(self) -> dict[str, object]:
        """Return it as one document; times are still times."""
        return asdict(self.status) | {"running": self.running, "problem": self.problem}


async def standing(settings: Settings) -> View:
    """Look at the ledger, if there is one, the files, and who is at work. Raises StateError."""
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    possible = home.targets(identity)
    targets = [possible[method] for method in settings.route if method in possible]
    records = [TargetRecord(target) for target in targets]
    standings: dict[str, Standing] = {}
    notes: dict[str, str] = {}
    results_waiting = 0
    if await home.has_ledger():
        ledger = await home.read_ledger()
        try:
            records = [await ledger.record(target) for target in targets]
            standings = {target.method: await ledger.memories().standing(target) for target in targets}
            notes = dict(await ledger.notes())
            results_waiting = len(await ledger.outbox())
        finally:
            await ledger.aclose()
    survey: Survey = {}
    problem = ""
    try:
        survey = await home.taker().survey()
    except SnapshotError as error:
        problem = str(error)
    holder = await asyncio.to_thread(home.holder)
    status = describe(
        system_id=identity.system_id,
        agent_id=identity.agent_id,
        route=settings.route,
        records=records,
        standings=standings,
        survey=survey,
        notes=notes,
        results_waiting=results_waiting,
        running=holder is not None and holder.command == "run",
    )
    running = None if holder is None else {"pid": holder.pid, "command": holder.command, "since": str(holder.since)}
    return View(status, running, problem)
