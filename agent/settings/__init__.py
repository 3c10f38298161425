"""What the user has set: one frozen tree, out of the command line, the environment and YAML files."""

from agent.settings.endpoints import (
    check_bucket,
    check_cloud_endpoint,
    check_http_endpoint,
    nats_servers,
    without_credentials,
)
from agent.settings.loading import Loaded, load
from agent.settings.private_file import check_private
from agent.settings.rows import Row, rows
from agent.settings.sources import variable
from agent.settings.tree import Settings

__all__ = [
    "Loaded",
    "Row",
    "Settings",
    "check_bucket",
    "check_cloud_endpoint",
    "check_http_endpoint",
    "check_private",
    "load",
    "nats_servers",
    "rows",
    "variable",
    "without_credentials",
]
