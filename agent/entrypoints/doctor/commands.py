"""The command `doctor`, which imports what it needs when it runs."""

from agent.entrypoints.cli.command import AsJson, DataDir, SettingsFile, StateDir, finish


def doctor(
    as_json: AsJson = False, data_dir: DataDir = None, state_dir: StateDir = None, settings: SettingsFile = None
) -> None:
    """Check settings, directories, servers and services, and name the cure of each problem.

    Exits with 0 (all is well), 1 (warnings) or 2 (errors).
    """
    from agent.entrypoints.doctor.run import diagnose, read_context  # noqa: PLC0415 - what only this command needs

    finish(diagnose(read_context(data_dir, state_dir, settings), as_json=as_json))
