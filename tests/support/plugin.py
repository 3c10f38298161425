"""Claude Code's plugin of the agent, and the commands that Claude Code starts for it."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "plugins" / "akosha-agent"
ROOT_VARIABLE = "CLAUDE_PLUGIN_ROOT"


def document(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def hook_words() -> list[str]:
    """Return how Claude Code starts the hook: in shell form, after it has replaced the variables."""
    ((group,),) = document(PLUGIN / "hooks" / "hooks.json")["hooks"].values()
    (hook,) = group["hooks"]
    return ["/bin/sh", "-c", _substituted(hook["command"])]


def server_words() -> list[str]:
    """Return how Claude Code starts the MCP server: without a shell, after it has replaced the variables."""
    (server,) = document(PLUGIN / ".mcp.json")["mcpServers"].values()
    return [_substituted(word) for word in (server["command"], *server["args"])]


def environment(environ: dict[str, str]) -> dict[str, str]:
    """Return these variables with those that Claude Code adds for the processes of a plugin."""
    return environ | {ROOT_VARIABLE: str(PLUGIN)}


def _substituted(text: str) -> str:
    return text.replace(f"${{{ROOT_VARIABLE}}}", str(PLUGIN))
