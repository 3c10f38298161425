"""Commands on a real terminal: a pseudo-terminal of 80 columns."""

import os
import pty
import re
import select
import signal
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import ioctl

import pytest

from tests.support.machine import TIMEOUT, Machine

COLUMNS, ROWS = 80, 40


@dataclass
class Screen:
    """The controlling end of a pseudo-terminal, and what was written to it."""

    controller: int
    terminal: int
    seen: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        """All that was written, without escape sequences; a rewritten line is a line of its own."""
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen.decode(errors="replace"))
        return re.sub(r"\r+\n?", "\n", plain)

    def until(self, pattern: str) -> str:
        """Read until the text matches the pattern, in which a space also matches a line's end and indentation."""
        wanted = re.compile(pattern.replace(" ", r"\s+"))
        while not (found := wanted.search(self.text)):
            readable, _, _ = select.select([self.controller], [], [], TIMEOUT)
            assert readable, self.text
            try:
                piece = os.read(self.controller, 65_536)
            except OSError:  # Linux: no process has the terminal any more
                piece = b""
            assert piece, self.text
            self.seen += piece
        return found[0]


@contextmanager
def screen() -> Iterator[Screen]:
    controller, terminal = pty.openpty()
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    shown = Screen(controller, terminal)
    try:
        yield shown
    finally:
        os.close(controller)


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path, enable_fallback="false")
    machine.environ |= {"TERM": "xterm"}
    machine.write(commits=5, entities=2)
    return machine


def test_run_on_a_terminal_prints_sentences_instead_of_log_lines(machine):
    with screen() as shown, machine.started("run", stderr=shown.terminal) as agent:
        os.close(shown.terminal)
        shown.until(rf"watching {machine.data}; memories go to {machine.bucket.as_uri()}\n")
        shown.until("databases have changed since the last sync: uploading")
        shown.until(r"(copying|uploading) .{20} \d+ %")
        shown.until(r"uploaded \d{8}_\d{6}_laptop: \d objects")
        agent.process.terminate()
        shown.until(r"\d\d:\d\d:\d\d stopped\n")
        assert agent.end().code == 0
    assert "agent_started" not in shown.text
    assert "\x1b[32m" in shown.seen.decode()


def test_a_watched_status_follows_the_agent_as_it_starts_syncs_and_stops(machine):
    with screen() as shown, machine.started("status", "--watch", stdout=shown.terminal) as watching:
        os.close(shown.terminal)
        shown.until("Not uploaded yet: knowledge_graph, reflection; no agent is running")
        with machine.run() as agent:
            shown.until("All memories are safe: last upload")
            shown.until(rf"agent running \(pid {agent.pid}, run\)")
        shown.until("Everything is uploaded, but no agent is running")
        watching.process.send_signal(signal.SIGINT)
        shown.until(r"reflection up to date \S+ MB\s+$")  # printed below the command, without the footer
        assert watching.end().code == 0
    assert shown.seen.decode().count("\x1b[?1049h") == shown.seen.decode().count("\x1b[?1049l") == 1


def test_a_watched_status_prints_each_new_verdict_to_a_pipe(machine):
    with machine.started("status", "--watch") as watching:
        watching.printed.wait(lambda line: "no agent is running" in line["text"])
        machine.sync()
        watching.printed.wait(lambda line: "Everything is uploaded" in line["text"])
        watching.process.send_signal(signal.SIGINT)
        watching.end()
    assert len(watching.printed.raw) == 2
    refused = machine.call("status", "--watch", "--json")
    assert (refused.code, "events --follow --json" in refused.err) == (2, True)


def test_a_watched_fleet_without_nats_reads_the_bucket_again(machine):
    machine.constants["agent.entrypoints.fleet_watch:BUCKET_SECONDS"] = 0.1
    with screen() as shown, machine.started("fleet", "--watch", directories=False, stdout=shown.terminal) as watching:
        os.close(shown.terminal)
        shown.until("No system is known")
        machine.sync()
        shown.until("1 system: all fine")
        watching.process.send_signal(signal.SIGINT)
        shown.until(r"laptop fine \d+ s ago .*\s+$")  # printed below the command, without the footer
        assert watching.end().code == 0


def test_run_on_a_terminal_logs_if_a_format_is_set(machine):
    machine.set(agent_log_format="json")
    with screen() as shown, machine.started("run", stderr=shown.terminal) as agent:
        os.close(shown.terminal)
        shown.until(r'"event": "sync_succeeded"')
        agent.process.terminate()
        assert agent.end().code == 0
    assert "watching /" not in shown.text
