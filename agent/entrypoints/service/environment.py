"""The environment of the service: the file that systemd reads, and the variables of this shell that it lacks."""

import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.domain.errors import AkoshaError

PRIVATE = 0o600

ENVIRONMENT_TEMPLATE = """\
# The environment of the akosha-agent service, as systemd reads it: NAME=value, one a line. This file stays mode 0600.
# It is for credentials that are not in ~/.aws, and for settings that are in no YAML file. What a shell has in its
# environment, the service has not. After a change: akosha-agent service restart
#
# AWS_ACCESS_KEY_ID=
# AWS_SECRET_ACCESS_KEY=
# SESSION_BUDDY_AKOSHA_CLOUD_BUCKET=
# SESSION_BUDDY_AKOSHA_CLOUD_ENDPOINT=
"""

_AGENT_VARIABLE = re.compile(r"(SESSION_BUDDY_AKOSHA|AKOSHA|AWS)_\w+")
_OTHERS = {"XDG_STATE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}


def environment_file(config_home: Path) -> Path:
    """Return the path of the environment file."""
    return config_home / "akosha-agent" / "environment"


def is_open_to_others(path: Path) -> bool:
    """Say whether others can open the file. Raises AkoshaError if it is not a file of this user's."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise AkoshaError(f"{path} cannot be accessed: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise AkoshaError(
            f"{path} is not a file of yours", hint="the service's credentials belong in one: move it away"
        )
    return stat.S_IMODE(found.st_mode) != PRIVATE


def read_environment(path: Path) -> dict[str, str]:
    """Parse the file as systemd does; return {} where there is none. Raises AkoshaError if it cannot be read.

    A line that is no assignment is ignored.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise AkoshaError(f"{path} cannot be read", hint="it must be a text file of yours, mode 0600") from error
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        name, mark, value = line.strip().partition("=")
        if mark and re.fullmatch(r"[A-Za-z_]\w*", name.strip(), re.ASCII):
            found[name.strip()] = _unquoted(value.strip())
    return found


def agent_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the agent reads."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if _AGENT_VARIABLE.fullmatch(name) or name.upper() in _OTHERS
    }


def missing_variables(environ: Mapping[str, str], service: Iterable[str]) -> list[str]:
    """Return the names of variables that the agent reads here, and that the service does not have."""
    return sorted(agent_variables(environ).keys() - set(service))


def _unquoted(value: str) -> str:
    if value[:1] not in {'"', "'"}:
        return value
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value
