"""`akosha-agent`, and `python -m agent`."""

import os
import sys

INTERRUPTED = 130
"""128 + SIGINT; the module `signal` takes the hook 6 ms to load."""

_STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}


def main() -> None:
    """Hand over to the command line; what is heavy is imported there, by the command that needs it.

    A session's end goes first: it may take no longer than Python takes to start.
    """
    words = sys.argv[1:]
    if words[:2] == ["hook", "session-end"] and not {"-h", "--help"} & set(words):
        from agent.entrypoints.hook.session_end import main as session_end  # noqa: PLC0415 - it alone

        session_end(words[2:])
    _fill_holes()
    try:
        _command_line()
    except KeyboardInterrupt:  # while modules are loaded: afterwards each command has its own handler
        sys.exit(INTERRUPTED)


def _command_line() -> None:
    from agent.entrypoints.cli import streams  # noqa: PLC0415 - light commands must not pay for it

    streams.guard()
    try:
        from agent.entrypoints.cli.app import app  # noqa: PLC0415 - as above

        try:
            app()
        finally:
            streams.flush()
    except streams.OutputError as error:  # printed outside of `command.finish`, or by it
        if not error.closed:
            sys.stderr.write(f"akosha-agent: {error}\n")
        sys.exit(error.exit_code)


def _fill_holes() -> None:
    """Open those of the standard streams that are closed: else a database may be what is printed to."""
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
