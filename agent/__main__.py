"""`akosha-agent`, and `python -m agent`."""

import sys


def main() -> None:
    """Hand over to the command line; what is heavy is imported there, by the command that needs it.

    A session's end goes first: it may take no longer than Python takes to start.
    """
    words = sys.argv[1:]
    if words[:2] == ["hook", "session-end"] and not {"-h", "--help"} & set(words):
        from agent.faces.hook.session_end import main as session_end  # noqa: PLC0415 - it alone

        session_end(words[2:])
    from agent.faces.cli import app  # noqa: PLC0415 - light commands must not pay for it

    app()


if __name__ == "__main__":
    main()
