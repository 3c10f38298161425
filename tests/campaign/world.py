"""What a campaign of faults happens to: a machine with a writer and a running agent, its bucket, and NATS."""

import http.client
import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TypeVar

import psutil

from tests.campaign.targets import OPENED, Kind, Target
from tests.campaign.usage import Usage
from tests.soak.clients import ControlConnection
from tests.support.bus_listener import ResultListener, listening
from tests.support.machine import COMMAND, Machine, Running
from tests.support.processes import children
from tests.support.servers.nats import NatsServer, running_nats
from tests.support.session_buddy import Writer
from tests.support.waiting import happens

SETTLE_SECONDS = 120.0
"""Maximum time until everything has arrived after a fault has ended."""

SAY_SECONDS = 90.0
"""Maximum time until the agent has logged an event or shows something in its status.

The agent gives a child process a minute: without memory, DuckDB may wait for ever.
"""

POLL_SECONDS = 0.1
CANARY = "canary-of-the-campaign-0123456789"
"""The value of each secret setting, and of a variable in the environment."""

_QUICK = {
    "agent_quiet_seconds": 0.1,
    "agent_deadline_seconds": 1,
    "agent_min_interval_seconds": 0.1,
    "agent_rescan_seconds": 2,
    "retry_backoff_seconds": 0.05,
    "agent_keep_last": 4,
    **dict.fromkeys(("agent_keep_daily", "agent_keep_weekly", "agent_keep_monthly"), 0),
}
_NATS_PATIENCE = {"connect": 1, "ping": 0.2, "ping_timeout": 0.3, "reconnect": 0.05, "reconnect_max": 0.2}
IDLE_CHILD_SECONDS = 0.5
"""How long the child process waits for the next attempt: shorter than `leftovers.LASTING_SECONDS`."""

LEFT_OVER_SECONDS = 3.0
"""Age at which a prune deletes what a killed one has left, so that a campaign does not wait for the product's day."""

_NATS_LOGIN = "authorization {{ user: agent, password: {password} }}"
_BACKOFF = 1.0
"""Longest back-off in seconds of a target, a request and network changes, so that a campaign does not wait long."""

T = TypeVar("T")


class NotSettled(Exception):  # noqa: N818 - an outcome of a round
    """The agent did not deliver everything in time."""


class Skipped(Exception):  # noqa: N818 - an outcome of a row
    """This machine does not allow a fault; the text says what is needed."""


_PATCHES = 3
"""Patches on a base, so that a round also replaces them by one."""


class World:
    """Commits are acknowledged when `commit` returns.

    `prepare` may change the machine, settings and `prefix` before the agent starts, and raise Skipped.
    """

    def __init__(
        self,
        folder: Path,
        rng: random.Random,
        *,
        target: Kind = "directory",
        prepare: Callable[["World"], None] = lambda _: None,
    ) -> None:
        self.folder, self.rng, self._prepare = folder, rng, prepare
        self.machine = Machine(folder / "machine", **_QUICK)
        self.machine.environ["AKOSHA_CANARY"] = CANARY
        self.machine.constants = {
            "agent.domain.routing:FIRST_TARGET_BACKOFF": {"seconds": _BACKOFF},
            "agent.domain.routing:LAST_TARGET_BACKOFF": {"seconds": _BACKOFF},
            "agent.application.sync.subscriber:FAULT_SECONDS": _BACKOFF,
            "agent.application.triggers.network_changes:FIRST_PAUSE_SECONDS": _BACKOFF,
            "agent.application.triggers.network_changes:LAST_PAUSE_SECONDS": _BACKOFF,
            "agent.adapters.duckdb.child_process:IDLE_SECONDS": IDLE_CHILD_SECONDS,
            "agent.bootstrap.buses:PATIENCE": _NATS_PATIENCE,
            "agent.application.archive.prune:LEFT_OVER_AFTER": {"seconds": LEFT_OVER_SECONDS},
            "agent.domain.upload_plan:LEAST_PATCHED_BYTES": 0,  # the databases are small
            "agent.domain.upload_plan:MOST_PATCHES": _PATCHES,
        }
        self.target: Target
        self.writer: Writer
        self.agent: Running | None = None
        self.prefix: Sequence[str] = (COMMAND,)
        """The command of the agent's next start; a fault may replace it by a program that kills itself."""

        self.nats: NatsServer
        self.listener: ResultListener
        self.committed_at: datetime
        """When the last transaction was acknowledged."""

        self.searched: set[str] = set()
        """The objects that were searched for secrets."""

        self.first_usage: Usage | None = None
        """What the agent used when it was calm for the first time."""

        self.log: list[str] = []
        """The log of all agents that have ended."""

        self._round_began = 0
        self._kind = target
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack as stack:
            folder = self.machine.bucket if self._kind == "directory" else self.folder / self._kind
            self.target = stack.enter_context(OPENED[self._kind](folder))
            self.machine.environ |= self.target.environ
            self.machine.secrets += (CANARY, *self.target.secrets)
            login = _NATS_LOGIN.format(password=CANARY)
            self.nats = stack.enter_context(running_nats(self.folder / "nats", config=login))
            self._use_nats(self.machine)
            self.machine.set(agent_http_token=CANARY, **self.target.settings)
            self._prepare(self)
            self.start_writer()
            stack.callback(self._end_writer)
            self.start_agent()
            stack.callback(self.kill_agent)
            self.listener = stack.enter_context(listening(self.nats.url.replace("//", f"//agent:{CANARY}@")))
            self.commit(3)
            self.settle()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def enter(self, context: AbstractContextManager[T]) -> T:
        """Enter a context that ends with the world; from `prepare`: after the agent and the writer have ended."""
        return self._stack.enter_context(context)

    def at_end(self, undo: Callable[..., object], *arguments: object) -> None:
        """Call `undo` when the world ends; from `prepare`: after the agent and the writer have ended."""
        self._stack.callback(undo, *arguments)

    def another_machine(self, name: str, **settings: object) -> Machine:
        """Return another machine, with the same bucket, system ID and NATS."""
        machine = Machine(self.folder / name, **_QUICK, **self.target.settings, enable_fallback=False)
        machine.environ |= self.target.environ
        machine.constants, machine.secrets = self.machine.constants, self.machine.secrets
        self._use_nats(machine)
        machine.set(**settings)
        return machine

    def _use_nats(self, machine: Machine) -> None:
        machine.set(agent_nats_url=self.nats.url, agent_nats_user="agent", agent_nats_password=CANARY)

    # The writer.

    def start_writer(self) -> None:
        self.writer = Writer(self.machine.data, "--paused").__enter__()

    def crash_writer(self) -> None:
        """Kill the writer: what it has committed since the last checkpoint is in the WAL only."""
        self.writer.crash()
        self._end_writer()

    def close_writer(self) -> None:
        """End the writer as Session-Buddy ends: it checkpoints its databases."""
        assert self.writer.close() == 0, self.writer.events[-3:]
        self._end_writer()

    def _end_writer(self) -> None:
        self.writer.__exit__(None, None, None)

    def commit(self, count: int = 1) -> None:
        """Commit so many transactions in both databases, and sometimes a checkpoint."""
        self.writer.run(f"commit {count}")
        self.writer.run(f"graph {count}")
        if self.rng.random() < 0.2:
            self.writer.run("checkpoint")
        self.committed_at = datetime.now(UTC)

    # The agent.

    def start_agent(self) -> None:
        """Start the agent, and wait until it answers or has ended."""
        agent = self.agent = self.machine.start("run", prefix=self.prefix)
        happens(lambda: self.status() or agent.process.poll() is not None, SAY_SECONDS)

    @property
    def pid(self) -> int:
        """The agent's process."""
        assert self.agent is not None
        return self.agent.pid

    @property
    def agent_id(self) -> str:
        """The ID of the agent in its uploads."""
        return json.loads((self.machine.state / "identity.json").read_text())["agent_id"]

    @property
    def ledger(self) -> Path:
        return self.machine.state / "ledger.sqlite"

    def kill_agent(self) -> None:
        """Kill the agent, if it runs, and keep its log."""
        if self.agent is None:
            return
        with suppress(ProcessLookupError):
            self.agent.process.send_signal(signal.SIGCONT)
        self.agent.process.kill()
        self._keep_log()

    def stop_agent(self) -> int:
        """Stop the agent as its service does; return its exit status."""
        assert self.agent is not None
        code = self.agent.stop()
        self._keep_log()
        return code

    def _keep_log(self) -> None:
        assert self.agent is not None
        done = self.agent.end()
        self.log += [done.out, done.err]
        self.agent = None

    def children(self, module: str) -> list[psutil.Process]:
        """Return the agent's child processes that run this module."""
        return children(module, self.pid)

    def get(self, path: str) -> bytes | None:
        """Return the running agent's answer to a GET of the control API; None if it does not answer now."""
        connection = ControlConnection(self.machine.state / "control.sock", 10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.read() if response.status == http.client.OK else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def status(self) -> dict | None:
        """Return the running agent's status; None if it does not answer now."""
        answer = self.get("/v1/status")
        return json.loads(answer) if answer else None

    def settle(self, seconds: float = SETTLE_SECONDS, *, or_ended: bool = False) -> None:
        """Wait until the agent has delivered everything and its results are published. Raises NotSettled.

        The status compares the files with the ledger, so a change that the watcher has not noticed yet is pending, too.
        `or_ended`: return if the agent has ended, too.
        """
        deadline = time.monotonic() + seconds
        status: dict | None = None
        while time.monotonic() < deadline:
            if self.agent is None or self.agent.process.poll() is not None:
                if or_ended:
                    return
                raise NotSettled(f"the agent has ended: {self.last_lines()}")
            status = self.status()
            if status and self._is_settled(status):
                return
            time.sleep(POLL_SECONDS)
        raise NotSettled(f"not settled within {seconds:g} s: {_abridged(status)}; {self.last_lines()}")

    def _is_settled(self, status: dict) -> bool:
        rows = status["targets"][0]["databases"] if status["targets"] else []  # a fallback may lack some
        return (
            not status["pending"]
            and bool(rows)
            and all(row["state"] == "clean" and not row["pending"] for row in rows)
            and not status["results_waiting"]
            and not self.machine.staged
        )

    # What the agent says.

    def begin_round(self) -> None:
        """From now on, `said` waits for new lines."""
        self._round_began = len(self.transcript)

    def said(self, *texts: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Wait until the agent has logged one of these texts in this round; repeat `meanwhile`. Raises NotSettled."""

        def found() -> bool:
            meanwhile()
            return any(text in self.transcript[self._round_began :] for text in texts)

        if not happens(found, SAY_SECONDS):
            raise NotSettled(f"the agent has not said {' or '.join(texts)}: {self.last_lines()}")

    def shows(self, what: str, condition: Callable[[dict], object]) -> None:
        """Wait until the agent's status meets the condition. Raises NotSettled, with `what` as the explanation."""
        if not happens(lambda: (status := self.status()) and condition(status), SAY_SECONDS):
            raise NotSettled(f"the status does not show {what}: {_abridged(self.status())}")

    def warns(self, code: str) -> None:
        """Wait until the agent's status has the warning. Raises NotSettled."""
        self.shows(f"the warning {code}", lambda status: code in [each["code"] for each in status["warnings"]])

    @property
    def transcript(self) -> str:
        return "".join([*self.log, *(self.agent.log.raw if self.agent else [])])

    def last_lines(self) -> str:
        """Return the end of the agent's log."""
        return "".join((self.agent.log.raw if self.agent else self.log)[-5:])

    # What has arrived.

    def manifests(self) -> list[dict]:
        """Return the manifests in the bucket, oldest first; not those that are pruned meanwhile, or damaged."""
        found = []
        for key in self.target.keys:
            if key.endswith("/manifest.json"):
                with suppress(FileNotFoundError, ValueError):
                    found.append(json.loads(self.target.fetch(key)))
        return found

    def results(self) -> list[dict]:
        """Return the results that a consumer on NATS has received."""
        return list(self.listener.received)

    def restored(self) -> Path:
        """Restore the newest upload by the command, and return the folder."""
        to = self.folder / "restored"
        done = self.machine.call("restore", "--to", str(to), prefix=self.prefix)
        assert done.code == 0, done.err
        return to


def _abridged(status: dict | None) -> str:
    if status is None:
        return "the agent does not answer"
    targets = [{name: target[name] for name in ("error", "next_try", "databases")} for target in status["targets"]]
    return json.dumps({"pending": status["pending"], "results_waiting": status["results_waiting"], "targets": targets})
