"""The command `prune`, as it is called."""

from typing import Annotated

import typer

from agent.domain.retention import KeepRules
from agent.entrypoints.cli.command import AsJson, DataDir, SettingsFile, StateDir, finish, load_settings
from agent.settings.model import MAX_KEPT


def _count(name: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar="N", min=0, max=MAX_KEPT, help=f"{what} Default: the setting.", show_default=False
    )
    return option


def prune(
    keep_last: Annotated[int | None, _count("--keep-last", "Keep so many of the last uploads.")] = None,
    keep_daily: Annotated[int | None, _count("--keep-daily", "Keep the last one of so many days.")] = None,
    keep_weekly: Annotated[int | None, _count("--keep-weekly", "Keep the last one of so many weeks.")] = None,
    keep_monthly: Annotated[int | None, _count("--keep-monthly", "Keep the last one of so many months.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and why the others stay; delete nothing.")
    ] = False,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    settings: SettingsFile = None,
) -> None:
    """Delete old uploads of this system, all but those that the rules keep; never the newest.

    The agent does it by itself after each upload (akosha_agent_prune).
    """
    from agent.entrypoints.cli.prune import prune_once  # noqa: PLC0415 - what only this command needs

    loaded = load_settings(data_dir, state_dir, settings, quiet=True).settings
    rules = KeepRules(
        last=loaded.agent_keep_last if keep_last is None else keep_last,
        daily=loaded.agent_keep_daily if keep_daily is None else keep_daily,
        weekly=loaded.agent_keep_weekly if keep_weekly is None else keep_weekly,
        monthly=loaded.agent_keep_monthly if keep_monthly is None else keep_monthly,
    )
    finish(prune_once(loaded, rules, dry_run=dry_run, as_json=as_json))
