"""What the checks stand on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from agent.bootstrap.doctor import DoctorContext
from agent.domain.errors import SettingsError
from agent.settings import Loaded, Settings, variable
from agent.settings.sources import SettingsContext


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """The settings, or why there are none: then `settings` has the directories that were asked for, and defaults.

    `environ`, `cwd` and `home` are the surroundings they were read in.
    """

    settings: Settings
    examination: DoctorContext
    origins: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    trouble: SettingsError | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
    cwd: Path = field(default_factory=Path.cwd)
    home: Path = field(default_factory=Path.home)

    @classmethod
    def of(cls, loaded: Loaded) -> "CheckContext":
        settings = loaded.settings
        return cls(
            settings=settings,
            examination=DoctorContext(settings),
            origins=loaded.origins,
            warnings=loaded.warnings,
        )

    @classmethod
    def despite(cls, trouble: SettingsError, data_dir: Path | None, state_dir: Path | None) -> "CheckContext":
        """Return what is left where the settings are wrong: the directories of options and environment, if usable."""
        place = SettingsContext(environ=os.environ, cwd=Path.cwd(), home=Path.home())
        given = {"agent_data_dir": data_dir, "agent_state_dir": state_dir}
        found = {key: path or os.environ.get(variable(key)) for key, path in given.items()}
        try:
            settings = Settings(**{key: place.path(path) for key, path in found.items() if path})  # type: ignore[arg-type] # pydantic's
        except ValidationError:
            settings = Settings()
        return cls(settings=settings, examination=DoctorContext(settings), trouble=trouble)

    @property
    def http_first(self) -> bool:
        """Whether everything goes to Akosha, and not there only where the cloud fails."""
        return self.settings.route[:1] == ("http",)
