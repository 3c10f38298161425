"""`service`: the agent as a service of this user: systemd on Linux, launchd on macOS.

`look` tells how that stands, for others who want to know.
"""

from agent.entrypoints.service.status import ServiceStatus, look

__all__ = ["ServiceStatus", "look"]
