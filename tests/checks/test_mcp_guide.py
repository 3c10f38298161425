"""The guide to the MCP server lists the fields that its tools return."""

import re
from pathlib import Path

import pytest

from agent.entrypoints.mcp.tools import RestorePoint, tool_definitions
from agent.entrypoints.result_document import ResultDocument

ROOT = Path(__file__).parents[2]
ASSISTANTS = (ROOT / "docs" / "guides" / "assistants-mcp.md").read_text(encoding="utf-8")
PROMISED_RESULT = {
    "method", "success", "files_uploaded", "bytes_transferred", "duration_seconds", "upload_id", "error",
    "triggered_by",
}  # fmt: skip


def documented_fields(tool: str) -> set[str]:
    [row] = re.findall(rf"^\| `{tool}\(.*?\)` \| (.*) \|$", ASSISTANTS, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row)) - {"auto", "cloud", "http"}


@pytest.mark.parametrize("tool", tool_definitions(), ids=lambda tool: tool["name"])
def test_the_guide_lists_fields_of_each_tools_output_schema(tool):
    name, schema = tool["name"], tool["outputSchema"]
    if name == "akosha_restore_points":
        assert documented_fields(name) == set(RestorePoint.model_fields)
    else:
        assert documented_fields(name) <= set(schema["properties"])
    if name == "sync_to_akosha":
        assert documented_fields(name) >= PROMISED_RESULT
        assert set(ResultDocument.model_fields) == set(schema["properties"])
