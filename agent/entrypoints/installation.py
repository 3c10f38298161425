"""How to install the agent, and for which user. It is not published: the commands run in a clone of its repository."""

import os
from pathlib import Path

from agent.domain.errors import AkoshaError

INSTALL = "in a clone: uv tool install . (or: pipx install ., or a virtual environment in your home directory)"
REINSTALL = "reinstall akosha-agent in a clone: uv tool install --reinstall . (or: pipx install --force .)"


def check_owner(home: Path) -> None:
    """Raise AkoshaError if another user owns the home directory, as under sudo: the files would belong to root."""
    try:
        owner = home.stat().st_uid
    except OSError as error:
        raise AkoshaError(f"the home directory {home} cannot be accessed: {error.strerror}") from error
    if owner != os.geteuid():
        raise AkoshaError(
            f"{home} is not the home directory of the current user", hint="run the command as yourself, without sudo"
        )
