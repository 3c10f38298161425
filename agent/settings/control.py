"""The settings of who may ask the running agent, and of what it says: the control API's port, and the log."""

from pydantic import BaseModel, Field, SecretStr

from agent.settings.validators import File, LogFormat, LogLevel, Token, Whole


class Control(BaseModel):
    """A part of the tree."""

    agent_http_port: Whole = Field(
        default=0,
        ge=0,
        le=65_535,
        description="Port on 127.0.0.1 for the control API, besides its Unix socket; 0: none.",
    )
    agent_http_token: Token = Field(
        default=SecretStr(""),
        description="Bearer token that changes over that port need; empty: one is made, in `http-token` in the "
        "state directory.",
    )
    agent_log_level: LogLevel = Field(default="INFO", description="Least level of what is logged.")
    agent_log_format: LogFormat = Field(
        default="auto", description="Form of log lines; auto: console on a terminal, else json."
    )
    agent_log_file: File = Field(
        default=None, description="File that `run` and `react` log to, in place of standard error; empty: none."
    )
    agent_log_file_mb: Whole = Field(
        default=10, ge=1, le=1024, description="Size at which that file is set aside, in MiB; five such are kept."
    )
