"""The tables of docs/control.md and README name what the models of the control API and of the MCP tools have."""

import re
from pathlib import Path

import pytest

from agent.entrypoints.control_api.openapi import ROUTES, SyncOrder
from agent.entrypoints.mcp.tools import RestorePoint, tool_definitions
from agent.entrypoints.results import ResultDocument

ROOT = Path(__file__).parents[2]
CONTROL = (ROOT / "docs" / "control.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROMISED_RESULT = {
    "method", "success", "files_uploaded", "bytes_transferred", "duration_seconds", "upload_id", "error",
    "triggered_by",
}  # fmt: skip


def test_the_table_of_routes_has_each_that_is_served_and_no_other():
    rows = re.findall(r"^\| `([A-Z]+) (/\S+)` \|", CONTROL, re.MULTILINE)
    assert sorted(rows) == sorted((route.method, route.path) for route in ROUTES)


def test_the_table_of_errors_has_each_status_of_a_problem_and_no_other():
    rows = re.findall(r"^\| ((?:\d{3}(?:, )?)+) \|", CONTROL, re.MULTILINE)
    found = {int(status) for row in rows for status in row.split(", ")}
    answered = {status.value for route in ROUTES for status in route.responses if status >= 400}
    assert found == answered | {405, 431}  # of every route: another method, and a head that is too large


def test_the_options_of_a_sync_are_those_of_the_model():
    [options] = re.findall(r"Fields, all optional: (.*?)default to true", CONTROL, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", options)) - {"auto", "cloud", "http"} == set(SyncOrder.model_fields)


def readme_fields(tool: str) -> set[str]:
    [row] = re.findall(rf"^\| `{tool}\(.*?\)` \| (.*) \|$", README, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row)) - {"auto", "cloud", "http"}


@pytest.mark.parametrize("tool", tool_definitions(), ids=lambda tool: tool["name"])
def test_the_fields_of_a_tools_result_in_readme_are_those_of_its_schema(tool):
    name, schema = tool["name"], tool["outputSchema"]
    if name == "akosha_restore_points":
        assert readme_fields(name) == set(RestorePoint.model_fields)
    else:
        assert readme_fields(name) <= set(schema["properties"])
    if name == "sync_to_akosha":
        assert readme_fields(name) >= PROMISED_RESULT
        assert set(ResultDocument.model_fields) == set(schema["properties"])
