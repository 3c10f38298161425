"""`open`: open the page of the running agent in a browser."""

import os
import sys
import webbrowser
from http import HTTPStatus
from typing import Annotated

import typer

from agent.adapters.unix_http import CONTROL_SOCKET, is_own_socket, request
from agent.bootstrap.home import RUN, Home
from agent.domain.errors import AgentUnavailable
from agent.domain.parsing import parse_json
from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.status_document import unresponsive_warning
from agent.settings import Settings

RESPONSE_SECONDS = 3.0
MAX_RESPONSE_BYTES = 64 * 1024

_SYSTEM: str = sys.platform
_DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
"""Variables of the environment of which one is set if a browser can be started; other systems than Linux need none."""

app = CommandGroup()


@app.command()
def open(  # noqa: A001 - the command's name
    settings: Settings,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the address instead of starting a browser.")
    ] = False,
) -> None:
    """Open the page of the running agent in a browser: its status, progress, history and uploads."""
    url = page_url(Home.of(settings))
    page = url.partition("#")[0]
    if only_print:
        typer.echo(url)
    elif has_display() and webbrowser.open(url):
        typer.echo(f"opened {page} in a browser (akosha-agent open --print prints the address instead)")
    else:
        typer.echo("no browser can be started here; the address is valid once, for a minute:", err=True)
        typer.echo(url)


def has_display() -> bool:
    """Return whether a browser with a window can be started."""
    return _SYSTEM != "linux" or any(os.environ.get(name) for name in _DISPLAYS)


def page_url(home: Home) -> str:
    """Have the running agent serve the page; return its address with a one-time token. Blocks.

    Raises AgentUnavailable if no agent is running, or it does not answer or refuses.
    """
    holder = home.holder()
    if holder is None or holder.command != RUN:
        raise AgentUnavailable("no agent is running", hint="akosha-agent service install, or akosha-agent run")
    path = home.state.path.absolute() / CONTROL_SOCKET
    try:
        if not is_own_socket(path):
            raise OSError("it has no control socket")
        response = request(path, "POST", "/v1/page", seconds=RESPONSE_SECONDS, max_bytes=MAX_RESPONSE_BYTES)
    except (BrokenPipeError, ConnectionResetError) as error:
        message = "the running agent closes its connections: it has too many, or is about to end"
        raise AgentUnavailable(message, hint="run akosha-agent open again in a few seconds") from error
    except OSError as error:
        reason = "" if isinstance(error, TimeoutError) else str(error)
        warning = unresponsive_warning(home, holder.pid, holder.command, since=holder.since, reason=reason)
        raise AgentUnavailable(warning.message, hint=warning.hint, unresponsive=True) from error
    if response.status == HTTPStatus.NOT_FOUND:
        raise AgentUnavailable("the running agent is of an earlier version", hint="akosha-agent service restart")
    try:
        document = parse_json(response.body)
        if response.status == HTTPStatus.OK:
            return str(document["url"])
        raise AgentUnavailable(str(document["detail"]), hint=str(document["hint"]))
    except (ValueError, KeyError, TypeError) as error:
        raise AgentUnavailable(f"the agent responds with {response.status} to /v1/page") from error
