"""The settings of the agent's own work: its directories, and when a change leads to a sync."""

from pathlib import Path

import platformdirs
from pydantic import BaseModel, Field

from agent.settings.validators import Folder, Seconds, Whole

APP = "akosha-agent"
WEEK = 7 * 24 * 3600.0


class Watching(BaseModel):
    """A part of the tree."""

    agent_data_dir: Folder = Field(
        default_factory=lambda: Path.home() / ".claude" / "data",
        description="Directory of Session-Buddy's databases.",
        json_schema_extra={"shown_default": "Session-Buddy's own data_dir, else ~/.claude/data"},
    )
    agent_state_dir: Folder = Field(
        default_factory=lambda: platformdirs.user_state_path(APP, appauthor=False),
        description="Directory of the agent's own: ledger, spool, lock, staged copies.",
        json_schema_extra={"shown_default": "the platform's state directory"},
    )
    agent_upload_on_change: bool = Field(
        default=True, description="Sync when a database changes, not only at session ends."
    )
    agent_quiet_seconds: Seconds = Field(
        default=2.0, ge=0, le=WEEK, description="Time without a change before a sync starts."
    )
    agent_deadline_seconds: Seconds = Field(
        default=30.0, gt=0, le=WEEK, description="Longest wait for that quiet while changes go on."
    )
    agent_min_interval_seconds: Seconds = Field(
        default=300.0, ge=0, le=WEEK, description="Least time between two syncs that file changes start."
    )
    agent_rescan_seconds: Seconds = Field(
        default=60.0,
        gt=0,
        le=WEEK,
        description="Time between two looks at all databases, for changes that went unnoticed.",
    )
    agent_max_upload_kib_per_s: Whole = Field(
        default=0, ge=0, le=2**30, description="Most that uploads and pushes send, in KiB a second; 0: no limit."
    )
