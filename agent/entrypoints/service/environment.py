"""The service's environment: the file that systemd reads, and the variables that the service lacks."""

import hashlib
import os
import re
import shlex
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.settings.sources import is_agent_variable

PRIVATE = 0o600

ENVIRONMENT_TEMPLATE = """\
# The environment of the akosha-agent service, in systemd's format: NAME=value, one per line. Keep its mode 0600.
# For settings and secrets, use akosha-agent config set instead, which the service and every shell see. This file is for
# variables of other programs, such as a proxy. After a change: akosha-agent service restart
#
# HTTPS_PROXY=
# AWS_PROFILE=
"""

_EARLIER_TEMPLATES = {
    "01b819a7632d5b5dbde12e8e47f786c43dfdf8bb3abc0313338794aedcbe8fe2",
    "389384ac22e1b07993b3bf5069b0898fcbfd18650ed39853bd7fc9b2ab6d9ef4",
}
"""SHA-256 of the templates of earlier versions."""

_OTHERS = {
    "XDG_CONFIG_HOME",
    "XDG_STATE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
}


def is_as_installed(text: str) -> bool:
    """Return whether this is the text that `service install` of this or an earlier version writes."""
    return text == ENVIRONMENT_TEMPLATE or hashlib.sha256(text.encode()).hexdigest() in _EARLIER_TEMPLATES


def environment_file(config_home: Path) -> Path:
    """Return the path of the environment file."""
    return config_home / "akosha-agent" / "environment"


def is_open_to_others(path: Path) -> bool:
    """Return whether the file's mode is not 0600. Raises AkoshaError if it is not this user's regular file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise AkoshaError(f"{path} cannot be accessed: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise AkoshaError(
            f"{path} is not a regular file that you own",
            hint="move it away: the file is for the service's credentials",
        )
    return stat.S_IMODE(found.st_mode) != PRIVATE


def read_environment(path: Path) -> dict[str, str]:
    """Parse the file as systemd does; return {} if it does not exist. Raises AkoshaError if it cannot be read.

    Lines that are not assignments are ignored.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise AkoshaError(f"{path} cannot be read", hint="it must be a text file that you own, mode 0600") from error
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        name, mark, value = line.strip().partition("=")
        if mark and re.fullmatch(r"[A-Za-z_]\w*", name.strip(), re.ASCII):
            found[name.strip()] = _unquoted(value.strip())
    return found


def agent_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the agent and its libraries read."""
    return {
        name: value for name, value in sorted(environ.items()) if is_agent_variable(name) or name.upper() in _OTHERS
    }


def missing_variables(environ: Mapping[str, str], service: Iterable[str]) -> list[str]:
    """Return the names of the agent's variables in `environ` that the service lacks."""
    return sorted(agent_variables(environ).keys() - set(service))


def notice_of_missing(names: Sequence[str], file: Path | None) -> str:
    """Return what to do about variables that the service lacks. `file`: the environment file, None on macOS."""
    hint = f"To add them, put them into {file}" if file else "To add them, use ~/.aws or --with-environment"
    if "AWS_SESSION_TOKEN" in names:
        hint = "Its keys expire within hours: akosha-agent config set cloud_access_key_id - cloud_secret_access_key -"
    return f"the service lacks variables of this shell: {', '.join(names)}. {hint}"


def _unquoted(value: str) -> str:
    if value[:1] not in {'"', "'"}:
        return value
    try:
        return "".join(shlex.split(value))
    except ValueError:
        return value
