"""The command. Light: what it needs is imported when it runs."""

from agent.entrypoints.cli.command import AsJson, DataDir, SettingsFile, StateDir, finish


def doctor(
    as_json: AsJson = False, data_dir: DataDir = None, state_dir: StateDir = None, settings: SettingsFile = None
) -> None:
    """Check everything that can be wrong, and say for each what mends it. Exit 0 (well), 1 (warnings), 2 (errors)."""
    from agent.entrypoints.doctor.run import diagnose, ground_of  # noqa: PLC0415 - what only this command needs

    finish(diagnose(ground_of(data_dir, state_dir, settings), as_json=as_json))
