"""The list of commands in `--help` has their summaries, and does not import the commands."""

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from agent.entrypoints.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_the_summary_of_each_command(name):
    module, summary = COMMANDS[name]
    app = import_module(f"agent.entrypoints.{module}").app
    if app.info.help:  # a group
        assert app.info.help == summary
    else:
        (command,) = app.registered_commands
        assert inspect.getdoc(command.callback).partition("\n\n")[0].replace("\n", " ") == summary
        assert command.callback.__name__ == name


def test_status_loads_no_server_client_and_no_database_engine():
    code = "import sys, agent.entrypoints.cli.status; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"aiobotocore", "botocore", "httpx2", "nats", "aiohttp", "mcp", "duckdb", "isal", "watchfiles", "tzlocal"}
    own = {"agent.adapters.s3", "agent.adapters.akosha", "agent.adapters.nats", "agent.bootstrap.methods"}
    assert (heavy | own).isdisjoint(process.stdout.split())


def test_sync_loads_no_client_and_nothing_that_only_the_running_agent_needs():
    code = "import sys, agent.entrypoints.cli.sync; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"aiobotocore", "botocore", "httpx2", "nats", "aiohttp", "mcp", "duckdb", "isal", "watchfiles", "tzlocal"}
    heavy |= {"rich.progress", "yaml", "prometheus_client"}
    own = {"agent.adapters.s3", "agent.application.archive.verify_loop", "agent.application.monitoring.supervisor"}
    assert (heavy | own).isdisjoint(process.stdout.split())


def test_run_loads_nothing_of_webhooks_and_the_page_before_one_is_set_or_opened():
    code = "import sys, agent.entrypoints.cli.run; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own = {"agent.domain.webhooks", "agent.adapters.webhook_sender"}
    own |= {"agent.application.monitoring.webhooks", "agent.application.monitoring.overdue"}
    own |= {f"agent.entrypoints.page.{name}" for name in ("files", "history", "uploads")} | {"webbrowser"}
    assert own.isdisjoint(process.stdout.split())


@pytest.mark.parametrize(
    ("option", "absent"),
    [
        ("--version", {"typer", "rich", "pydantic", "structlog", "asyncio", "logging"}),
        ("--help", {"rich", "pydantic", "structlog", "asyncio", "agent.settings"}),
    ],
    ids=["version", "help"],
)
def test_version_and_help_load_few_modules(option, absent):
    code = (
        "import atexit, sys; sys.argv = ['akosha-agent', *sys.argv[1:]]; from agent.__main__ import main;"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    process = subprocess.run([sys.executable, "-c", code, option], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout
    assert absent.isdisjoint(process.stderr.split())
