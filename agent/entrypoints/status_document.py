"""The status document, as `status --json`, the control API and the MCP tool return it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

from agent.application.monitoring.status import Status
from agent.bootstrap.home import RUN, Home
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.status_verdict import Facts, Verdict, verdict_of
from agent.settings import Settings

AGENT_STOPPED, AGENT_SILENT = "agent_stopped", "agent_silent"
"""Codes of the warnings about an agent that holds the state directory but does not answer."""

STARTING = timedelta(seconds=30)
"""An agent that does not answer so soon after its start is probably still starting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusDocument(Status):
    """The status of the agent, its targets and its databases.

    `running` is the process that holds the state directory (`pid`, `command`, `since`); `problem` is the reason if the
    databases cannot be read. `verdict` is null only if the agent is of an earlier version.
    """

    # OpenAPI and the MCP tool derive their schemas from this class. It is not a pydantic model: without an agent,
    # `status` needs no validation.

    __pydantic_config__: ClassVar[Mapping[str, bool]] = {"json_schema_serialization_defaults_required": True}

    running: dict[str, object] | None
    problem: str
    sync_enabled: bool
    data_dir: str
    state_dir: str
    verdict: Verdict | None = None

    @classmethod
    def of(cls, status: Status, settings: Settings, *, running: dict[str, object] | None, problem: str) -> Self:
        document = cls(
            **{field.name: getattr(status, field.name) for field in fields(status)},
            running=running,
            problem=problem,
            sync_enabled=settings.sync_enabled,
            data_dir=str(settings.agent_data_dir),
            state_dir=str(settings.agent_state_dir),
        )
        return document.judged()

    def to_dict(self) -> dict[str, object]:
        """Return the document of `status --json`, with times as datetimes."""
        return asdict(self)

    def judged(self, now: datetime | None = None, *, agent_runs: bool | None = None) -> Self:
        """Return the document with the verdict as of `now`, by default the present time.

        `agent_runs` is assumed if it is given.
        """
        if agent_runs is None:
            agent_runs = self.running is not None and self.running.get("command") == RUN
        facts = Facts(
            status=self,
            agent_runs=agent_runs,
            unresponsive=self.unresponsive_agent,
            problem=self.problem,
            sync_enabled=self.sync_enabled,
            now=now or datetime.now(UTC),
        )
        return replace(self, verdict=verdict_of(facts))

    @property
    def unresponsive_agent(self) -> str:
        """A sentence about an agent that does not answer; "" if it answers or none is running."""
        found = [warning.message for warning in self.warnings if warning.code in (AGENT_STOPPED, AGENT_SILENT)]
        return f"{found[0]}; this status is from its ledger" if self.running and found else ""


def running_process(home: Home) -> dict[str, object] | None:
    """Return the process that holds the state directory: `pid`, `command`, `since` (None: unknown). Blocks briefly."""
    if (holder := home.holder()) is None:
        return None
    return {"pid": holder.pid, "command": holder.command, "since": holder.since and str(holder.since)}


def unresponsive_warning(
    home: Home, pid: int, command: str, *, since: datetime | None = None, reason: str = ""
) -> StatusWarning:
    """Return the warning about a process that holds the state directory but does not answer. Blocks briefly.

    `since`: when it started, None if unknown. `reason`: why its status is unknown, "" if it gave no answer at all.
    """
    holder = f"process {pid} ({command})"
    if home.is_suspended(pid):
        return StatusWarning(
            code=AGENT_STOPPED, message=f"{holder} does not answer: it is suspended", hint=f"kill -CONT {pid}"
        )
    message = f"{holder} does not report its status: {reason}" if reason else f"{holder} does not answer"
    if since is not None and home.clock.now() - since < STARTING:
        return StatusWarning(code=AGENT_SILENT, message=message, hint="it has just started: try again in a few seconds")
    return StatusWarning(
        code=AGENT_SILENT,
        message=message,
        hint="akosha-agent service restart, or kill that process and start akosha-agent run",
    )
