"""The command of the installed `akosha-agent`, with a path that survives upgrades, and whether it is permanent."""

import importlib.metadata
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.entrypoints.installation import INSTALL

NAME = "akosha-agent"
AS_MODULE = ("-m", "agent")
_INSTALL_HINT = f"install it permanently, {INSTALL}; then run the command again"

_BIN_VARIABLES = ("PIPX_BIN_DIR", "UV_TOOL_BIN_DIR", "XDG_BIN_HOME")
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/var/folders")  # noqa: S108 - only compared with


def program(home: Path, environ: Mapping[str, str], *, python: str = sys.executable) -> tuple[str, ...]:
    """Return the command that starts this installation of the agent.

    The link that pipx and uv create is preferred to its target; without a command, it is `python -m agent`. Raises
    AkoshaError if the installation is in a cache of uvx or `pipx run`, or in a directory for temporary files.
    """
    command = next((path for path in _commands_of(python) if path.is_file() and os.access(path, os.X_OK)), None)
    words = (str(command),) if command else (python, *AS_MODULE)
    check_permanent(words, home, environ)
    if command is None:
        return words
    real = command.resolve()
    for link in _links(home, environ):
        if link.resolve() == real:
            return (str(link),)
    return (str(command),)


def check_permanent(words: Sequence[str], home: Path, environ: Mapping[str, str]) -> None:
    """Check that the words that start the agent name no file that is soon deleted, before they are stored elsewhere.

    Raises AkoshaError if the installation is in a cache of uvx or `pipx run`, in a directory for temporary files, or
    if there is none, only sources in the working directory.
    """
    for word in words:
        if word.startswith("/"):
            _check_place(Path(word), home, environ)
    if tuple(words[-len(AS_MODULE) :]) == AS_MODULE:
        _check_installed(words[0])


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


def _check_place(path: Path, home: Path, environ: Mapping[str, str]) -> None:
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
