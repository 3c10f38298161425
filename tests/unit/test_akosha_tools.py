"""The tools of an Akosha server: odd schemas are not used, or refused with an error."""

import orjson
import pytest

from agent.adapters.akosha.server_address import ServerAddress
from agent.adapters.akosha.tools import ToolCatalog
from agent.domain.errors import SinkError

ADDRESS = ServerAddress("http://127.0.0.1:1/mcp")
BATCH = {"type": "object"}


def catalog(schema: dict) -> ToolCatalog:
    return ToolCatalog.read("akosha 1", {"batch_store_memories": BATCH, "store_reflection": schema}, ADDRESS)


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": [], "required": []},
        {"properties": {"content": {}}, "required": "content"},
        {"properties": {"content": {}}, "required": [["content"]]},
        {"properties": {"content": {}}, "required": [None]},
        {"properties": {"content": {}}, "required": ["unknown"]},
        {"properties": {"content": {"type": [["string"]]}}, "required": ["content"]},
        {"properties": {"content": {"anyOf": [{"type": [{}]}]}}, "required": ["content"]},
    ],
    ids=str,
)
def test_a_tool_whose_required_arguments_the_agent_cannot_fill_is_not_used(schema):
    found = catalog(schema)
    assert found.kind_tools == {}
    assert {"conversation", "reflection", "entity"} == found.capabilities.kinds


@pytest.mark.parametrize("shape", [{"anyOf": 5}, {"oneOf": "x", "type": "string"}, {"anyOf": {"type": "array"}}, 5])
def test_alternatives_that_are_not_a_list_are_ignored(shape):
    found = catalog({"properties": {"content": shape}, "required": ["content"]})
    assert found.kind_tools["reflection"].arguments == {"content"}


def test_a_schema_nested_more_deeply_than_json_can_be_written_is_refused():
    deep = orjson.loads(b"[" * 500 + b"]" * 500)
    with pytest.raises(SinkError, match=r"http://127\.0\.0\.1:1/mcp: the schema of a tool is nested too deeply"):
        catalog({"properties": {"content": deep}})
