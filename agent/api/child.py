"""The child process of a sync: a request on stdin, one JSON document on stdout, log lines (JSON) on stderr.

{"result": {...}} is the result, also of a failed sync; {"refused": {"message", "hint", "transient"}} is the error if
there is no result. On SIGTERM the process cleans up and exits. If its parent is killed, it completes the sync.
"""

import asyncio
import io
import json
import os
import sys
from contextlib import suppress
from typing import BinaryIO

import structlog

from agent.api.process import Request
from agent.bootstrap.home import Home
from agent.domain.errors import AkoshaError
from agent.entrypoints import logs
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.shutdown import run_to_end
from agent.entrypoints.sync_client import SyncClient

STDERR = 2


class _Log(io.TextIOBase):
    """Stderr. Output after its reader has exited is discarded."""

    def write(self, text: str, /) -> int:
        with suppress(BrokenPipeError):
            os.write(STDERR, text.encode(errors="backslashreplace"))
        return len(text)


def main() -> None:
    """Carry out the request on stdin."""
    sys.stderr = _Log()
    # Only the document goes to stdout. Output of libraries goes to stderr, like the log.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        os.dup2(STDERR, sys.stdout.fileno())
        raise SystemExit(run_to_end(_respond(Request.decode(sys.stdin.buffer.read()), output)))


async def _respond(request: Request, output: BinaryIO) -> int:
    try:
        document: dict[str, object] = {"result": await _sync(request)}
    except AkoshaError as error:
        document = {"refused": {"message": error.message, "hint": error.hint, "transient": error.transient}}
    with suppress(BrokenPipeError):
        output.write(json.dumps(document).encode())
        output.flush()
    return 0


async def _sync(request: Request) -> dict[str, object]:
    loaded = request.load()
    logs.hide(*logs.known_secrets(loaded.settings, os.environ))
    logs.configure(loaded.settings.agent_log_level, "json")
    for warning in loaded.warnings:
        structlog.get_logger().warning("settings", warning=warning)
    settings = loaded.settings
    if not request.config.system_id:
        settings = (await asyncio.to_thread(Home.of(settings).with_agent_system_id)).settings
    client = await SyncClient.prepare(
        settings,
        method=request.method,
        upload_reflections=request.upload_reflections,
        upload_knowledge_graph=request.upload_knowledge_graph,
    )
    return ResultDocument.of(await client.result()).to_dict()


if __name__ == "__main__":
    main()
