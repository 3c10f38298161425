"""`akosha-agent`, and `python -m agent`."""

import gc
import os
import sys

from agent import __version__

INTERRUPTED = 130
"""128 + SIGINT. The module `signal` takes 6 ms to import, which the hook has no time for."""

_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def main() -> None:
    """Run the command line.

    The hook of a session's end comes first: it may take hardly longer than Python takes to start.
    """
    words = sys.argv[1:]
    if words[:2] == ["hook", "session-end"] and not {"-h", "--help"} & set(words):
        from agent.entrypoints.hook.session_end import main as session_end  # noqa: PLC0415

        session_end(words[2:])
    _fill_holes()
    try:
        _command_line(words)
    except KeyboardInterrupt:  # while modules are loaded: afterwards each command has its own handler
        sys.exit(INTERRUPTED)


def _command_line(words: list[str]) -> None:
    from agent.entrypoints.cli import streams  # noqa: PLC0415 - the hook does without

    streams.guard()
    try:
        try:
            if words[:1] == ["--version"]:  # before typer is imported, which takes five times as long as Python itself
                print(f"akosha-agent {__version__}")  # noqa: T201
            else:
                gc.disable()  # imports create no garbage worth a sixth of the start-up time; a command enables it again
                _import_structlog_without_rich()
                from agent.entrypoints.cli.app import app  # noqa: PLC0415

                app()
        finally:
            streams.flush()
    except streams.OutputError as error:  # what no command has handled
        if not error.closed:
            sys.stderr.write(f"akosha-agent: {error}\n")
        sys.exit(error.exit_code)


def _import_structlog_without_rich() -> None:
    """Import structlog, which would import rich for tracebacks that the agent does not use: a tenth of the start-up."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment] # an import of it raises ImportError, which structlog handles
    import structlog  # noqa: F401, PLC0415

    del sys.modules["rich"]


def _fill_holes() -> None:
    """Open those of the standard streams that are closed: else the next file opened would be printed to."""
    for descriptor, (name, mode) in enumerate(_STREAMS.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays


if __name__ == "__main__":
    main()
