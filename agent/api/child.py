"""The process of its own: a request on stdin, one JSON document on stdout, log lines (JSON) on stderr.

{"result": {...}} is CONTRACT's result, failed or not; {"refused": {"message", "hint", "transient"}} says why there is
none. SIGTERM ends it tidily. Where whoever asked has been killed, it goes on: memories are saved all the same.
"""

import asyncio
import io
import json
import os
import sys
from contextlib import suppress
from typing import BinaryIO

import structlog

from agent.api.request import Request
from agent.bootstrap.home import Home
from agent.domain.errors import AkoshaError
from agent.entrypoints import logs
from agent.entrypoints.results import ResultDocument
from agent.entrypoints.shutdown import run_to_end
from agent.entrypoints.sync_client import SyncClient

STDERR = 2


class _Log(io.TextIOBase):
    """Stderr, for as long as somebody reads it."""

    def write(self, text: str, /) -> int:
        with suppress(BrokenPipeError):
            os.write(STDERR, text.encode(errors="backslashreplace"))
        return len(text)


def main() -> None:
    """Do what stdin asks for."""
    sys.stderr = _Log()
    # The answer alone goes to stdout: what a library might print goes where the log goes.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answer:
        os.dup2(STDERR, sys.stdout.fileno())
        raise SystemExit(run_to_end(_see_to(Request.decode(sys.stdin.buffer.read()), answer)))


async def _see_to(request: Request, answer: BinaryIO) -> int:
    try:
        document: dict[str, object] = {"result": await _sync(request)}
    except AkoshaError as error:
        document = {"refused": {"message": error.message, "hint": error.hint, "transient": error.transient}}
    with suppress(BrokenPipeError):
        answer.write(json.dumps(document).encode())
        answer.flush()
    return 0


async def _sync(request: Request) -> dict[str, object]:
    loaded = request.load()
    logs.hide(*logs.known_secrets(loaded.settings, os.environ))
    logs.configure(loaded.settings.agent_log_level, "json")
    for warning in loaded.warnings:
        structlog.get_logger().warning("settings", warning=warning)
    settings = loaded.settings
    if not request.config.system_id:
        settings = (await asyncio.to_thread(Home.of(settings).as_the_agent)).settings
    asking = await SyncClient.prepare(
        settings,
        method=request.method,
        upload_reflections=request.upload_reflections,
        upload_knowledge_graph=request.upload_knowledge_graph,
    )
    return ResultDocument.of(await asking.result()).to_dict()


if __name__ == "__main__":
    main()
