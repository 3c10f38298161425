"""`run` under a supervisor: its notifications, the reload on SIGHUP, and the shutdown."""

import fcntl
import os
import pty
import signal
import termios

from tests.support.machine import Machine
from tests.support.notify import notified
from tests.support.session_buddy import GRAPH


def test_run_notifies_systemd_and_reloads_settings_on_sighup(tmp_path):
    machine = Machine(tmp_path, agent_quiet_seconds=None, http_token=None, cloud_endpoint=None)
    machine.write(commits=2)
    (machine.data / GRAPH).unlink(missing_ok=True)
    file, canary = machine.home / "settings.yaml", "canary-5678"
    machine.secrets = (canary,)
    first = f"akosha_cloud_endpoint: {machine.bucket.as_uri()}\n"
    file.write_text(first)
    with notified() as notify:
        machine.environ |= {"NOTIFY_SOCKET": notify.address, "WATCHDOG_USEC": "2000000"}

        def hang_up(text: str) -> list[dict]:
            """Write the settings, send SIGHUP, and return the notifications until the agent is ready again."""
            file.write_text(text)
            since = len(notify.gather())
            os.kill(agent.pid, signal.SIGHUP)
            notify.wait(lambda message: "READY" in message, since=since)
            messages = notify.received[since:]
            begin = next(at for at, one in enumerate(messages) if "RELOADING" in one)
            assert int(messages[begin]["MONOTONIC_USEC"]) > 0
            return messages[begin:]

        with machine.started("run", "--settings", str(file)) as agent:
            assert notify.wait(lambda message: "READY" in message)["MAINPID"] == str(agent.pid)
            notify.wait(lambda message: message.get("STATUS", "").startswith("nothing pending; last upload 2"))

            messages = hang_up(first + "akosha_agent_quiet_seconds: soon\n")
            assert any("settings refused" in one.get("STATUS", "") for one in messages)
            assert "akosha_agent_quiet_seconds" in agent.logged("settings_refused")[0]["reason"]

            hang_up(first + f"akosha_agent_state_dir: {machine.home}/elsewhere\n")  # the command line has precedence
            agent.logged("settings_unchanged")

            hang_up(first + f"akosha_agent_log_level: DEBUG\nakosha_http_token: {canary}\n")
            (changed,) = agent.logged("settings_changed")
            assert changed["keys"] == ["akosha_agent_log_level", "akosha_http_token"]
            agent.log.wait(lambda line: line.get("level") == "debug")
            notify.wait(lambda message: "WATCHDOG" in message, since=len(notify.gather()))
            since = len(notify.received)
            assert agent.stop() == 0
            notify.wait(lambda message: "STOPPING" in message, since=since)
    assert len(machine.manifests) == 1


def test_run_stops_when_its_terminal_closes(tmp_path):
    machine = Machine(tmp_path)
    terminal, its = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        with machine.started("run", stdin=its, start_new_session=True, preexec_fn=take_terminal) as agent:
            os.close(its)
            agent.logged("agent_started")
            os.close(terminal)
            terminal = -1
            agent.logged("agent_stopped")
            assert agent.process.wait(60) == 0
    finally:
        if terminal >= 0:
            os.close(terminal)
