"""`akosha-agent`, and `python -m agent`."""


def main() -> None:
    """Hand over to the command line; what is heavy is imported there, by the command that needs it."""
    from agent.faces.cli import app  # noqa: PLC0415 - light commands must not pay for it

    app()


if __name__ == "__main__":
    main()
