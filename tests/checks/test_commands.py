"""The list of commands in `--help` says what the commands say of themselves, and imports none of them."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from agent.entrypoints.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_in_the_list_is_its_summary(name):
    module, summary = COMMANDS[name]
    app = import_module(f"agent.entrypoints.{module}").app
    if app.info.help:  # a group
        assert app.info.help == summary
    else:
        (command,) = app.registered_commands
        assert inspect.getdoc(command.callback).partition("\n\n")[0].replace("\n", " ") == summary
        assert command.callback.__name__ == name


def test_the_status_loads_no_client_of_a_server_and_no_database_engine():
    code = "import sys, agent.entrypoints.cli.status; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"aioboto3", "botocore", "httpx2", "nats", "aiohttp", "mcp", "duckdb", "isal", "watchfiles", "tzlocal"}
    own = {"agent.adapters.s3", "agent.adapters.akosha", "agent.adapters.nats", "agent.bootstrap.methods"}
    assert (heavy | own).isdisjoint(done.stdout.split())


@pytest.mark.parametrize(
    ("option", "absent"),
    [
        ("--version", {"typer", "rich", "pydantic", "structlog", "asyncio", "logging"}),
        ("--help", {"rich", "pydantic", "structlog", "asyncio", "agent.settings"}),
    ],
    ids=["version", "help"],
)
def test_an_answer_without_settings_loads_next_to_nothing(option, absent):
    code = (
        "import atexit, sys; sys.argv = ['akosha-agent', *sys.argv[1:]]; from agent.__main__ import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    found = subprocess.run([sys.executable, "-c", code, option], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout
    assert absent.isdisjoint(found.stderr.split())
