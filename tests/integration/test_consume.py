"""Results that are printed or passed to commands: hostile texts, failing commands and invalid options."""

import asyncio
import json
import os
import signal
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.bootstrap.home import Home
from agent.domain.errors import SettingsError
from agent.entrypoints.cli import events
from agent.entrypoints.cli.events import Execution, consume_results
from agent.settings import load
from tests.support import values
from tests.support.clock import ManualClock

SECONDS = 30
SKIPPED = values.skipped("r1")


def settings_of(tmp_path: Path, **keys: object):
    given = {"system_id": "laptop", "agent_data_dir": tmp_path / "data", "agent_state_dir": tmp_path / "state"} | keys
    text = {key: str(value) for key, value in given.items()}
    return load(command_line=text, settings_file=None, environ={}, cwd=tmp_path, home=tmp_path).settings


def execution(command: str, clock=None) -> Execution:
    return Execution(command, clock or SystemClock(), CloudEventsCodec().encode)


async def appears(file: Path) -> str:
    async with asyncio.timeout(SECONDS):
        while not (file.is_file() and file.read_text().endswith("\n")):
            await asyncio.sleep(0.005)
    return file.read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------------------------------------------- the ledger


async def test_only_new_results_of_the_ledger_are_followed(tmp_path, monkeypatch):
    home = Home.of(settings_of(tmp_path))
    await asyncio.to_thread(home.prepare)
    ledger = await home.open_ledger()
    await ledger.settle(None, values.skipped("before"))
    caught_up, sleep = asyncio.Event(), SystemClock.sleep

    async def asleep(clock, seconds):
        caught_up.set()
        await sleep(clock, seconds / 10)

    monkeypatch.setattr(SystemClock, "sleep", asleep)
    async with aclosing(events._results_from_ledger(home)) as found, asyncio.timeout(SECONDS):
        first = asyncio.create_task(anext(found), name="first")
        await caught_up.wait()
        await ledger.add_to_history(values.request("after"))
        await ledger.settle(None, values.skipped("after"))
        assert await first == values.skipped("after")
    await ledger.aclose()


async def test_a_ledger_created_later_is_followed_from_its_beginning(tmp_path, monkeypatch):
    home = Home.of(settings_of(tmp_path))
    await asyncio.to_thread(home.prepare)
    waiting = asyncio.Event()

    async def asleep(*_):
        waiting.set()
        await asyncio.sleep(0)

    monkeypatch.setattr(SystemClock, "sleep", asleep)
    async with aclosing(events._results_from_ledger(home)) as found, asyncio.timeout(SECONDS):
        first = asyncio.create_task(anext(found), name="first")
        await waiting.wait()
        ledger = await home.open_ledger()
        await ledger.settle(None, SKIPPED)
        assert await first == SKIPPED
        await ledger.aclose()


# ------------------------------------------------------------------------------------------------------------ output


async def test_a_result_is_printed_as_one_line_without_control_characters(tmp_path, capsys):
    bad = replace(values.failed(), error="one\r\ntwo \x1b[31mred \x9b2J\x07 größer")
    home = Home.of(settings_of(tmp_path))
    await events._printing(home, system=True, as_json=False)(bad)
    (line,) = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert line.endswith("  sync.failed       laptop-7  one\\r\\ntwo \\x1b[31mred \\x9b2J\\x07 größer")
    await events._printing(home, system=False, as_json=True)(bad)
    (line,) = capsys.readouterr().out.removesuffix("\n").split("\n")
    assert line.isprintable()
    assert "größer" in line
    assert json.loads(line)["data"]["error"] == bad.error


# ----------------------------------------------------------------------------------------------------------- commands


VARIABLES = "$AKOSHA_EVENT_SYSTEM_ID,$AKOSHA_EVENT_OUTCOME,$AKOSHA_EVENT_UPLOAD_ID,$AKOSHA_EVENT_ID"


async def test_a_command_gets_the_event_on_stdin_and_its_main_fields_in_the_environment(folder):
    reported = replace(values.succeeded(values.manifest(reflection=1)), id="an id")
    await execution(f'cat > event; echo "{VARIABLES}" > gist').handle(reported)
    assert (folder / "gist").read_text() == f"laptop-7,succeeded,{reported.upload_id},an id\n"
    assert (folder / "event").read_bytes() == CloudEventsCodec().encode(reported) + b"\n"


async def test_an_event_adds_no_line_and_no_escape_sequence_to_what_a_command_logs(folder):
    forged = replace(values.skipped(), id="a \0,\nsucceeded \x1b[2J", upload_id="$(touch owned)\u202e")
    await execution(f"printf '%s\\n' \"{VARIABLES}\" > log").handle(forged)
    expected = r"laptop-7,skipped,$(touch owned)\u202e,a \x00,\nsucceeded \x1b[2J"
    assert (folder / "log").read_text() == f"{expected}\n"
    assert not (folder / "owned").exists()


async def test_a_command_need_not_read_its_stdin(folder):
    large = replace(SKIPPED, files_uploaded=tuple("x" * 100 for _ in range(10_000)))  # more than a pipe buffers
    for command in ("true", "exec <&-", "sleep 60 >/dev/null 2>&1 & echo $! > left"):
        async with asyncio.timeout(SECONDS):
            await execution(command).handle(large)
    os.kill(int((folder / "left").read_text()), signal.SIGKILL)


async def test_a_failed_command_is_repeated_with_a_backoff_of_up_to_a_minute(folder):
    clock = ManualClock()
    command = "echo x >> runs; [ $(wc -l < runs) -ge 9 ] || kill -9 $$"
    with capture_logs() as logs:
        running = asyncio.create_task(execution(command, clock).handle(SKIPPED), name="running")
        for wait in (1, 2, 4, 8, 16, 32, 60, 60):
            await clock.until_asleep()
            assert clock.next_due == wait
            await clock.advance(wait)
        async with asyncio.timeout(SECONDS):
            await running
    failures = [one for one in logs if one["event"] == "command_failed"]
    assert [one["delay_seconds"] for one in failures] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert {one["exit_code"] for one in failures} == {-signal.SIGKILL}


async def test_a_command_that_cannot_be_started_is_retried(monkeypatch):
    clock, begin = ManualClock(), asyncio.create_subprocess_exec

    async def refuse(*_, **__):
        monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    with capture_logs() as logs:
        running = asyncio.create_task(execution("true", clock).handle(SKIPPED), name="running")
        await clock.until_asleep()
        await clock.advance(1)
        async with asyncio.timeout(SECONDS):
            await running
    assert "unavailable" in logs[0]["error"]


@pytest.mark.parametrize("does_not", ["trap '' TERM; ", ""], ids=["does not end", "leaves one that does not"])
async def test_a_command_that_does_not_end_in_time_is_killed_with_its_children(folder, monkeypatch, does_not):
    monkeypatch.setattr(events, "END_SECONDS", 0.3)
    command = f"{does_not}(trap '' TERM; echo started > started; while :; do sleep 60; done) & wait; wait"
    running = asyncio.create_task(execution(f"echo $$ > group; {command}").handle(SKIPPED), name="running")
    await appears(folder / "started")
    group = int(await appears(folder / "group"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(SECONDS):
        while events._is_alive(group):  # until their new parent has reaped them
            await asyncio.sleep(0.005)


async def test_a_cancellation_during_the_start_of_a_command_ends_the_command(folder, monkeypatch):
    begin, started, proceed = asyncio.create_subprocess_exec, asyncio.Event(), asyncio.Event()

    async def slow(*words, **how):
        process = await begin(*words, **how)
        started.set()
        await proceed.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", slow)
    command = "trap 'echo terminated > terminated; exit' TERM; echo $$ > group; while :; do sleep 0.05; done"
    running = asyncio.create_task(execution(command).handle(SKIPPED), name="running")
    await started.wait()
    await appears(folder / "group")
    running.cancel()
    await asyncio.sleep(0)
    proceed.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (folder / "terminated").read_text() == "terminated\n"


async def test_a_terminated_command_gets_time_to_end(folder):
    command = (
        "(trap 'sleep 0.2; echo done > done; exit' TERM; echo started > started; while :; do sleep 0.05; done) & wait"
    )
    running = asyncio.create_task(execution(command).handle(SKIPPED), name="running")
    await appears(folder / "started")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (folder / "done").read_text() == "done\n"


# ----------------------------------------------------------------------------------------------------- invalid options

NATS = {"agent_nats_url": "nats://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("asked", "keys", "hint"),
    [
        ({"system": "*"}, {}, "akosha_agent_nats_url"),
        ({"durable": "mine"}, {}, "akosha_agent_nats_url"),
        ({"durable": "mine", "command": "true"}, {}, "akosha_agent_nats_url"),
        ({"system": "*"}, NATS | {"agent_bus": "memory"}, "akosha_agent_bus"),
        ({"command": " "}, {}, "--exec"),
        ({"command": " "}, NATS, "--exec"),
        ({"system": "a.b"}, NATS, "letters, digits, - or _"),
        ({"system": ">"}, NATS, "letters, digits, - or _"),
        ({"system": ""}, NATS, "letters, digits, - or _"),
        ({"system": "*", "durable": "a b"}, NATS, "letters, digits, - or _"),
        ({"system": "*"}, NATS | {"agent_nats_credentials_file": "/nowhere"}, "akosha_agent_nats_credentials_file"),
        ({"system": "*"}, NATS | {"agent_nats_ca_file": os.devnull}, "akosha_agent_nats_ca_file"),
    ],
    ids=str,
)
async def test_invalid_options_are_refused_with_a_hint(tmp_path, asked, keys, hint):
    with pytest.raises(SettingsError) as failure:
        await consume_results(
            settings_of(tmp_path, **keys),
            **{"system": None, "durable": None, "command": None, "as_json": False} | asked,
        )
    assert hint in str(failure.value)
