"""The command of the installed `akosha-agent`, with a path that survives upgrades."""

import importlib.metadata
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.entrypoints.installation import INSTALL

NAME = "akosha-agent"
_INSTALL_HINT = f"install it permanently, {INSTALL}; then {NAME} service install"

_BIN_VARIABLES = ("PIPX_BIN_DIR", "UV_TOOL_BIN_DIR", "XDG_BIN_HOME")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/var/folders")  # noqa: S108 - only compared with


def program(home: Path, environ: Mapping[str, str], *, python: str = sys.executable) -> tuple[str, ...]:
    """Return the command that starts this installation of the agent.

    The link that pipx and uv create is preferred to its target; without a command, it is `python -m agent`. Raises
    AkoshaError if the installation is in a cache of uvx or `pipx run`, or in a directory for temporary files.
    """
    command = next((path for path in _commands_of(python) if path.is_file() and os.access(path, os.X_OK)), None)
    _check_permanent(command or Path(python), home, environ)
    if command is None:
        _check_installed(python)
        return python, "-m", "agent"
    real = command.resolve()
    for link in _links(home, environ):
        if link.resolve() == real:
            return (str(link),)
    return (str(command),)


def _commands_of(python: str) -> Iterator[Path]:
    yield Path(python).with_name(NAME)
    if python == sys.executable:
        for scheme in (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")):
            yield Path(sysconfig.get_path("scripts", scheme)) / NAME


def _links(home: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    folders = [Path(environ[name]) for name in _BIN_VARIABLES if environ.get(name)]
    for folder in (*folders, home / ".local" / "bin"):
        if folder.is_absolute():
            yield folder / NAME


def _check_permanent(path: Path, home: Path, environ: Mapping[str, str]) -> None:
    caches = [home / ".cache" / "uv", home / "Library" / "Caches" / "uv", home / ".cache" / "pipx"]
    caches += [home / ".local" / "share" / "pipx" / ".cache", home / ".local" / "pipx" / ".cache"]
    caches += [home / "Library" / "Application Support" / "pipx" / ".cache", home / "Library" / "Caches" / "pipx"]
    if environ.get("XDG_CACHE_HOME"):
        caches += [Path(environ["XDG_CACHE_HOME"]) / name for name in ("uv", "pipx")]
    if environ.get("UV_CACHE_DIR"):
        caches.append(Path(environ["UV_CACHE_DIR"]))
    if environ.get("PIPX_HOME"):
        caches.append(Path(environ["PIPX_HOME"]) / ".cache")
    temporary = [Path(folder) for folder in (*_TEMPORARY, tempfile.gettempdir())]
    directories = {path.absolute(), path.parent.resolve()}
    for kind, folders in (("a cache that is cleared", caches), ("a directory for temporary files", temporary)):
        for folder in folders:
            if any(path_.is_relative_to(real) for path_ in directories for real in (folder, folder.resolve())):
                raise AkoshaError(f"{path} is in {kind} ({folder}), so it would stop working", hint=_INSTALL_HINT)


def _check_installed(python: str) -> None:
    try:
        importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError as error:
        raise AkoshaError(
            f"{NAME} is not installed: `{python} -m agent` works in this directory only", hint=_INSTALL_HINT
        ) from error
