"""Settings: one frozen model, loaded from the command line, the environment and YAML files."""

from agent.settings.display import Row, settings_table
from agent.settings.endpoints import (
    check_bucket,
    check_cloud_endpoint,
    check_http_endpoint,
    nats_servers,
    without_credentials,
)
from agent.settings.loading import load
from agent.settings.model import Loaded, Settings
from agent.settings.sources import variable
from agent.settings.validators import check_private

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
