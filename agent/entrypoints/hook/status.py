"""How it stands with the hook: what was found, against what it should be."""

from dataclasses import dataclass
from enum import StrEnum

from agent.entrypoints.hook.claude_settings import Found
from agent.entrypoints.hook.command_line import HookCommand

INSTALL = "akosha-agent hook install"
TOO_OLD = "this Claude Code is older than 2.1.139, and runs no hook with args"


class State(StrEnum):
    """`outdated`: another command than these settings ask for; `broken`: it is there, and cannot work."""

    INSTALLED = "installed"
    ABSENT = "not installed"
    OUTDATED = "outdated"
    BROKEN = "broken"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class HookStatus:
    """What is so, why, and what mends it."""

    found: Found
    state: State
    why: str = ""
    hint: str = ""

    @property
    def well(self) -> bool:
        return self.state is State.INSTALLED

    def document(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "state": self.state.value,
            "file": str(self.found.path),
            "commands": [
                {"command": str(one), "form": "exec" if one.with_args else "shell", "program_exists": one.runs}
                for one in self.found.commands
            ],
            "why": self.why,
            "hint": self.hint,
        }


def hook_status(found: Found, wanted: HookCommand, *, runs_args: bool | None = None) -> HookStatus:
    """Compare what a look has found with the command that the settings ask for.

    `runs_args`: whether Claude Code runs hooks with `args`, None where that is unknown.
    """
    if found.trouble:
        return HookStatus(found, State.UNKNOWN, found.trouble)
    if not found.commands:
        return HookStatus(found, State.ABSENT, "the agent is not told when a session ends", INSTALL)
    if found.switched_off:
        return HookStatus(found, State.BROKEN, "disableAllHooks is true", f'take it out of "{found.path}"')
    gone = next((one for one in found.commands if not one.runs), None)
    if gone is not None:
        return HookStatus(found, State.BROKEN, f"there is no {gone.missing}, or it cannot be executed", INSTALL)
    if runs_args is False and any(one.with_args for one in found.commands):
        return HookStatus(found, State.BROKEN, TOO_OLD, INSTALL)
    if any(str(one) != str(wanted) for one in found.commands):
        return HookStatus(found, State.OUTDATED, f"with the present settings it is {wanted}", INSTALL)
    return HookStatus(found, State.INSTALLED)
