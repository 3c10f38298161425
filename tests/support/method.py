"""A SyncMethod with scripted outcomes, for tests of its callers."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from agent.domain.delivery_state import Target
from agent.domain.events import SyncRequested
from agent.ports import Delivered, Ledger, Reporter, Unchanged
from tests.support import values


class ScriptedMethod:
    """Follows its script, one entry an attempt: an error is raised, a number is an upload, None is unchanged."""

    def __init__(self, ledger: Ledger, script: Iterable[Exception | int | None] = (), name: str = "cloud") -> None:
        self.name = name
        self.target: Target = replace(values.TARGET, method=name)
        self.available = True
        self.asked: list[SyncRequested] = []
        self.hold: asyncio.Event | None = None
        self._ledger, self._script = ledger, list(script)

    async def is_available(self) -> bool:
        return self.available

    async def sync(self, request: SyncRequested, report: Reporter) -> Delivered | Unchanged:
        self.asked.append(request)
        report.phase("upload", 100)
        report.moved(100)
        if self.hold is not None:
            await self.hold.wait()
        step = self._script.pop(0) if self._script else None
        if isinstance(step, Exception):
            raise step
        if step is None:
            return Unchanged(reason="nothing has changed")
        await self._ledger.mark_owed(self.target, ["reflection"])
        await self._ledger.begin(self.target, values.intent(step, request.request_id, reflection=step))
        manifest = values.manifest(step, request.request_id, reflection=step)
        return Delivered(
            manifest=manifest,
            fingerprints={"reflection": values.fingerprint("reflection", step)},
            problems={},
            result=values.succeeded(manifest),
        )

    async def aclose(self) -> None:
        pass
