"""Another agent that holds the state directory of the service: as long as it runs, the service cannot."""

from agent.bootstrap.home import Home
from agent.domain.errors import AkoshaError, StateError
from agent.entrypoints.service.manager import ServiceManager
from agent.settings import Settings


def check_alone(keeper: ServiceManager, settings: Settings) -> None:
    """Raise AkoshaError if an agent runs there that is not the service's. A single sync is over soon, and no rival."""
    try:
        holder = Home.of(settings).holder()
    except StateError:
        return  # the agent says it better, and goes on trying
    if holder is None or holder.command != "run" or holder.pid == _own(keeper):
        return
    raise AkoshaError(
        f"the state directory {settings.agent_state_dir} is in use by {holder}, which is not the service",
        hint=f"end that one first (Ctrl-C where it runs, or kill {holder.pid}), or choose another --state-dir; "
        "service install --no-start installs beside it",
    )


def _own(keeper: ServiceManager) -> int | None:
    try:
        return keeper.course().pid
    except AkoshaError:
        return None
