"""The templates that are installed: in the wheel beside the package, in a checkout in `deploy`."""

from pathlib import Path

import agent
from agent.domain.errors import AkoshaError


def template(name: str) -> str:
    """Return the text of `deploy/{name}`. Raises AkoshaError if it is not there."""
    package = Path(agent.__file__).parent
    for folder in (package / "deploy", package.parent / "deploy"):
        try:
            return (folder / name).read_text(encoding="utf-8")
        except OSError:
            continue
    raise AkoshaError(
        f"the template {name} is missing from {package}", hint="install akosha-agent anew: its files are not complete"
    )
