"""The settings of what becomes of uploads: how many are kept, how often the newest is looked at."""

from pydantic import BaseModel, Field

from agent.settings.validators import Seconds, Whole

MOST = 100_000


class Keeping(BaseModel):
    """A part of the tree."""

    agent_prune: bool = Field(
        default=True, description="After an upload, delete those of this system that the next four do not keep."
    )
    agent_keep_last: Whole = Field(default=10, ge=0, le=MOST, description="How many of the last uploads are kept.")
    agent_keep_daily: Whole = Field(
        default=7, ge=0, le=MOST, description="For how many days (with uploads) the last one of the day is kept."
    )
    agent_keep_weekly: Whole = Field(
        default=4, ge=0, le=MOST, description="For how many weeks (with uploads) the last one of the week is kept."
    )
    agent_keep_monthly: Whole = Field(
        default=12, ge=0, le=MOST, description="For how many months (with uploads) the last one of the month is kept."
    )
    agent_verify_hours: Seconds = Field(
        default=24.0,
        ge=0,
        le=8760,
        description="Hours between two looks whether the newest upload is whole in the bucket; 0: never.",
    )
    agent_deep_verify_mb: Whole = Field(
        default=500,
        ge=0,
        le=MOST,
        description="Megabytes that the agent downloads once a week to verify one kept upload deep, with"
        " `akosha_agent_verify_hours` above 0; 0: never.",
    )
