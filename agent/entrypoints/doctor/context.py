"""Shared by the checks: the settings, the state directory, and the object store."""

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.host_facts import PROC
from agent.adapters.s3 import S3Store
from agent.bootstrap.home import Home
from agent.bootstrap.stores import object_options
from agent.domain.errors import SettingsError
from agent.domain.identity import Identity
from agent.domain.naming import check_system_id, sanitise_system_id
from agent.domain.parsing import parse_json
from agent.ports.concurrency import in_daemon_thread
from agent.settings import Settings, variable
from agent.settings.own_files import S3Credentials
from agent.settings.sources import SettingsContext

T = TypeVar("T")

CONNECT_SECONDS = 10.0
"""Time limit of a connection, including name resolution; the same as the agent's."""

UNKNOWN_AGENT = "0" * 32


@dataclass(slots=True, kw_only=True)
class DoctorContext:
    """The settings, or the error if they are invalid: `settings` then has the requested directories, else defaults.

    `environ`, `cwd` and `user_home` are those with which the settings were read. `step_seconds` limits a single step of
    a check. It is shorter than the limit of the check, because the error of the step is more specific.
    `s3_credentials` are used instead of all other sources. The checks change, create and lock nothing except the probe
    object.
    """

    settings: Settings
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    settings_error: SettingsError | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    cwd: Path = field(default_factory=Path.cwd)
    user_home: Path = field(default_factory=Path.home)
    proc: Path = PROC
    step_seconds: float = 4.0
    s3_credentials: S3Credentials | None = None
    home: Home = field(init=False)
    _store: DirectoryStore | S3Store | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.home = Home.of(self.settings)

    @classmethod
    def without_settings(cls, problem: SettingsError, data_dir: Path | None, state_dir: Path | None) -> "DoctorContext":
        """Return the context for invalid settings, with the directories of options and environment if valid."""
        paths = SettingsContext(environ=os.environ, cwd=Path.cwd(), home=Path.home())
        given = {"agent_data_dir": data_dir, "agent_state_dir": state_dir}
        found = {key: path or os.environ.get(variable(key)) for key, path in given.items()}
        try:
            settings = Settings(**{key: paths.path(path) for key, path in found.items() if path})  # type: ignore[arg-type] # pydantic's
        except ValidationError:
            settings = Settings()
        return cls(settings=settings, settings_error=problem)

    def store(self) -> DirectoryStore | S3Store:
        """Return the object store; all checks share its connections."""
        if self._store is None:
            s = self.settings
            if s.directory is not None:
                self._store = DirectoryStore(s.directory / s.cloud_bucket)
            else:
                self._store = S3Store(
                    bucket=s.cloud_bucket,
                    endpoint=s.cloud_endpoint,
                    region=s.cloud_region,
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=self.step_seconds,
                    object_options=object_options(s),
                    credentials=self.s3_credentials,
                )
        return self._store

    async def identity(self) -> Identity:
        """Return the agent's identity; before its first start, the future one with an agent ID of zeros.

        Raises NamingError.
        """
        agent_id, system_id, file = UNKNOWN_AGENT, "", self.home.state.path / "identity.json"
        with suppress(OSError, ValueError, KeyError, TypeError):
            stored = parse_json(await in_thread(file.read_bytes))
            agent_id, system_id = str(stored["agent_id"]), check_system_id(str(stored["system_id"]))
        if self.settings.system_id:
            system_id = sanitise_system_id(self.settings.system_id)
        return Identity(
            agent_id=agent_id,
            system_id=system_id or sanitise_system_id(socket.gethostname()),
            is_default=not self.settings.system_id,
        )

    async def aclose(self) -> None:
        """Close connections. Idempotent."""
        store, self._store = self._store, None
        if store is not None:
            await store.aclose()


async def in_thread(work: Callable[[], T]) -> T:
    """Run a blocking call in a thread that does not keep the process alive: a lost mount may block it."""
    return await in_daemon_thread(work, name="doctor")
