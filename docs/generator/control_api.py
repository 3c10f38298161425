"""The routes of the control API and the models of their bodies, from its OpenAPI document."""

import json
from collections.abc import Iterator
from typing import Any

from agent.entrypoints.control_api.openapi import openapi_document
from docs.generator.markdown import code, fields, page, table, type_of

INTRODUCTION = """\
[Control API](../control.md) explains access, event streams and errors, with examples. A running agent serves this
description as an OpenAPI 3.1 document at `GET /openapi.json`; [openapi.json](openapi.json) is a copy of it.

GET routes accept HEAD too. Every route answers 405 to another method (`Allow` lists those allowed), and 431 to a
request head that is too large."""
PROBLEM = "ProblemDocument"


def document() -> str:
    """Return the OpenAPI document."""
    return json.dumps(openapi_document(), indent=2) + "\n"


def text() -> str:
    """Return the page."""
    described: Any = openapi_document()
    operations = [
        (method.upper(), path, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    overview = [(code(f"{method} {path}"), operation["summary"]) for method, path, operation in operations]
    shared = _problems(operations[0][2])
    blocks = [INTRODUCTION, table(("route", "summary"), overview)]
    blocks += ["## Errors", f"Every route may return these, as a [{PROBLEM}](#{PROBLEM.lower()}) (RFC 9457)."]
    blocks.append(table(("status", "meaning"), shared.items()))
    used: set[str] = set()
    for method, path, operation in operations:
        blocks += _operation(method, path, operation, shared)
        used |= _references(operation)
    blocks.append("## Models")
    schemas = described["components"]["schemas"]
    for name in sorted(_closure(used, schemas)):
        schema = schemas[name]
        properties = schema.get("properties", {})  # an enumeration has none
        blocks += [f"### {name}", schema.get("description", ""), fields(schema) if properties else type_of(schema)]
        if "data" in properties:  # a CloudEvent
            blocks += ["Fields of `data`:", fields(schema["properties"]["data"])]
    return page("Control API routes", "agent/entrypoints/control_api/routes.py", *filter(None, blocks))


def _problems(operation: dict[str, Any]) -> dict[str, str]:
    return {
        status: response["description"]
        for status, response in operation["responses"].items()
        if PROBLEM in _body(response["content"])
    }


def _operation(method: str, path: str, operation: dict[str, Any], shared: dict[str, str]) -> Iterator[str]:
    yield f"## {method} {path}"
    yield operation["summary"]
    if parameters := operation.get("parameters"):
        rows = [(code(one["name"]), one["in"], one["description"]) for one in parameters]
        yield table(("parameter", "in", "meaning"), rows)
    if body := operation.get("requestBody"):
        (schema, *_) = (content["schema"] for content in body["content"].values())
        kinds = " or ".join(map(code, body["content"]))
        yield f"Body: {type_of(schema)}, as {kinds}."
    if "security" in operation:
        yield "Over a port, the request needs the bearer token, or the session of a page."
    rows = [
        (status, response["description"], _body(response["content"]))
        for status, response in operation["responses"].items()
        if shared.get(status) != response["description"]
    ]
    yield table(("status", "meaning", "body"), rows)


def _body(content: dict[str, Any]) -> str:
    return ", ".join(f"{type_of(body['schema'])} (`{kind}`)" for kind, body in content.items())


def _closure(names: set[str], schemas: dict[str, Any]) -> set[str]:
    found: set[str] = set()
    while names - found:
        name = (names - found).pop()
        found.add(name)
        names |= _references(schemas[name])
    return found


def _references(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {str(value["$ref"]).rpartition("/")[2]} if "$ref" in value else set()
        return own.union(*map(_references, value.values()))
    return set[str]().union(*map(_references, value)) if isinstance(value, (list, tuple)) else set()
