"""`akosha-agent`, and `python -m agent`."""

import gc
import os
import sys

from agent import __version__

INTERRUPTED = 130
"""128 + SIGINT. A literal, because importing `signal` takes 6 ms: too long for the hook."""

_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def main() -> None:
    """Run the command line.

    `hook session-end` is dispatched before anything else is imported: the hook may take hardly longer than Python
    takes to start.
    """
    words = sys.argv[1:]
    if words[:2] == ["hook", "session-end"] and not {"-h", "--help"} & set(words):
        from agent.entrypoints.hook.session_end import main as session_end  # noqa: PLC0415

        session_end(words[2:])
    _open_closed_streams()
    try:
        _command_line(words)
    except KeyboardInterrupt:  # during imports; later, each command has its own handler
        sys.exit(INTERRUPTED)


def _command_line(words: list[str]) -> None:
    from agent.entrypoints.cli import streams  # noqa: PLC0415 - the hook does not need it

    streams.guard()
    try:
        try:
            if words[:1] == ["--version"]:  # importing typer takes five times as long as starting Python
                print(f"akosha-agent {__version__}")  # noqa: T201
            else:
                # A command uses no plugins of pydantic; looking for them in all installed packages takes 8 ms.
                os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
                gc.disable()  # collections during the imports take a sixth of the start-up time; commands enable it
                from agent.entrypoints.cli.app import app  # noqa: PLC0415

                app()
        finally:
            streams.flush()
    except streams.OutputError as error:  # not handled by a command
        if not error.closed:
            sys.stderr.write(f"akosha-agent: {error}\n")
        sys.exit(error.exit_code)


def _open_closed_streams() -> None:
    """Open /dev/null as each closed standard stream. Otherwise output would go to the next file that is opened."""
    for descriptor, (name, mode) in enumerate(_STREAMS.items()):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # returns the lowest free descriptor: this one
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - open until exit


if __name__ == "__main__":
    main()
