"""The tools of a server: which ones the agent uses, their arguments, and their results."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import orjson

from agent.adapters.akosha import errors
from agent.adapters.akosha.server_address import ServerAddress
from agent.domain.errors import SinkError
from agent.domain.memories import Kind
from agent.ports import Capabilities, PackedMemory

Message = dict[str, Any]
"""A parsed JSON object from the server. It does not leave this package."""

BATCH = "batch_store_memories"
OWN_TOOLS: Mapping[Kind, str] = {
    "reflection": "store_reflection",
    "entity": "create_entity",
    "relationship": "create_relation",
}
"""Kinds that may have their own tool. Akosha 0.11 has none of these tools."""

_BATCHED: frozenset[Kind] = frozenset({"conversation", "reflection", "entity"})
_LISTS = ("tags", "observations", "embedding")
_OBJECTS = ("metadata", "properties")
_COMMON = ("memory_id", "id", "text", "content", "metadata", "properties", "source", "system_id", "original_id", "type")
_ALWAYS: Mapping[Kind, tuple[str, ...]] = {
    "reflection": (*_COMMON, "tags"),
    "entity": (*_COMMON, "name", "entity_type", "observations"),
    "relationship": (*_COMMON, "from_entity", "to_entity", "relation_type", "from", "to", "from_id", "to_id"),
}
_SOMETIMES = ("embedding", "created_at", "timestamp", "project", "session_id", "category", "graph", "namespace")
_EVERYTHING = ("memory_id", "text", "metadata", "created_at")
_HASH_DIGITS = 12


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool call. `data` is the structured result, else JSON from the text, else None."""

    failed: bool
    text: str
    data: Message | None

    @classmethod
    def of(cls, result: Message) -> Self:
        """Read the result of tools/call. Accepts any JSON object."""
        content = result.get("content")
        texts = [part["text"] for part in content if _is_text(part)] if isinstance(content, list) else []
        text = "\n".join(texts)
        data = result.get("structuredContent")
        if not isinstance(data, dict):
            data = _object(texts[0]) if len(texts) == 1 else None
        # A result that is not an object is wrapped like this.
        if data is not None and set(data) == {"result"}:
            inner = data["result"]
            data = inner if isinstance(inner, dict) else _object(inner) if isinstance(inner, str) else None
        return cls(failed=result.get("isError") is True, text=text, data=data)


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _object(text: str) -> Message | None:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class KindTool:
    """A tool for one kind of memory. `arguments` are those that the agent can fill."""

    kind: Kind
    name: str
    arguments: frozenset[str]
    required: frozenset[str]

    @classmethod
    def read(cls, kind: Kind, schema: Message) -> Self | None:
        """Return the tool for a kind, None if it requires an argument that the agent cannot fill."""
        listed, required = schema.get("properties"), schema.get("required", [])
        if not isinstance(listed, dict) or not isinstance(required, list):
            return None
        if not all(isinstance(name, str) for name in required):
            return None
        available = {*_ALWAYS[kind], *_SOMETIMES}
        arguments = {name for name, shape in listed.items() if name in available and _fits(name, shape)}
        if schema.get("additionalProperties") is True:
            arguments |= {*_EVERYTHING} - {*listed}
        if not arguments.issuperset(required):
            return None
        return cls(kind, OWN_TOOLS[kind], frozenset(arguments), frozenset(required))

    def fill(self, packed: PackedMemory) -> bytes | None:
        """Return the arguments for a memory as JSON, None if the memory lacks a required one."""
        values = _argument_values(self.kind, packed)
        if not self.required <= {*values}:
            return None
        return orjson.dumps({name: values[name] for name in sorted(self.arguments) if name in values})


@dataclass(frozen=True, slots=True)
class ToolCatalog:
    """The tools of a server that the agent uses: the one for batches, and those for single kinds."""

    capabilities: Capabilities
    kind_tools: Mapping[Kind, KindTool]

    @classmethod
    def read(cls, server: str, tools: Mapping[str, Message], address: ServerAddress) -> Self:
        """Read the tools (name -> input schema). Raises SinkError if the server cannot store memories."""
        if BATCH not in tools:
            raise SinkError(
                f"{address}: {server} has no tool {BATCH}",
                hint="update Akosha, or set akosha_http_endpoint to an Akosha server",
            )
        kind_tools: dict[Kind, KindTool] = {}
        for kind, name in OWN_TOOLS.items():
            if name in tools and (tool := KindTool.read(kind, tools[name])) is not None:
                kind_tools[kind] = tool
        used = {name: tools[name] for name in sorted({BATCH, *OWN_TOOLS.values()}) if name in tools}
        try:
            digest = hashlib.sha256(orjson.dumps(used, option=orjson.OPT_SORT_KEYS)).hexdigest()[:_HASH_DIGITS]
        except TypeError as error:  # orjson reads values nested more deeply than it writes
            raise errors.not_mcp(address, "the schema of a tool is nested too deeply") from error
        need = {kind for kind in _BATCHED if kind not in kind_tools} | {
            kind for kind, tool in kind_tools.items() if "embedding" in tool.required
        }
        kinds = _BATCHED.union(kind_tools)
        version = f"{server}; {', '.join(used)}; {digest}"
        capabilities = Capabilities(
            version=version,
            kinds=kinds,
            need_embedding=frozenset(need),
            reports_known=frozenset(_BATCHED - kind_tools.keys()),
        )
        return cls(capabilities, kind_tools)


def _fits(name: str, shape: object) -> bool:
    """Return whether the schema allows the type that the agent sends for an argument."""
    kind = "array" if name in _LISTS else "object" if name in _OBJECTS else "string"
    if not isinstance(shape, dict):
        return True
    alternatives = (each for word in ("anyOf", "oneOf") if isinstance(each := shape.get(word), list))
    choices = [shape, *(choice for each in alternatives for choice in each if isinstance(choice, dict))]
    types: list[object] = []
    for choice in choices:
        given = choice.get("type")
        types += given if isinstance(given, list) else [given] if given else []
    return not types or kind in types


def _argument_values(kind: Kind, packed: PackedMemory) -> dict[str, object]:
    """Return the values of a memory by all argument names that a tool may have for them."""
    document: Message = orjson.loads(packed.body)
    metadata: Message = document["metadata"]
    values: dict[str, object] = {"tags": [], "observations": []}
    values |= {name: value for name, value in metadata.items() if value is not None}
    values |= {
        "memory_id": packed.memory_id,
        "id": packed.memory_id,
        "text": document["text"],
        "content": document["text"],
        "metadata": metadata,
        "system_id": metadata["source"],
        "properties": {**metadata, "memory_id": packed.memory_id},
    }
    if "embedding" in document:
        values["embedding"] = document["embedding"]
    if "created_at" in metadata:
        values["timestamp"] = metadata["created_at"]
    if kind == "entity":
        values["type"] = values.get("entity_type", kind)
    if kind == "relationship":
        values["type"] = values.get("relation_type", kind)
        for end in ("from", "to"):
            if (entity := values.get(f"{end}_entity")) is not None:
                values[end] = values[f"{end}_id"] = entity
    return values
