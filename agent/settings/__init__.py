"""What the user has set: one frozen tree, out of the command line, the environment and YAML files."""

from agent.settings.display import Row, settings_table
from agent.settings.endpoints import (
    check_bucket,
    check_cloud_endpoint,
    check_http_endpoint,
    nats_servers,
    without_credentials,
)
from agent.settings.loading import Loaded, load
from agent.settings.model import Settings
from agent.settings.private_file import check_private
from agent.settings.sources import variable

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
    "settings_table",
    "variable",
    "without_credentials",
]
