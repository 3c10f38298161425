"""docs/logs.md names every event that is logged, at its level, and every key; and no others."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
LOGGERS = {"_log", "log", "logger"}
STEPS = {"event", "level", "timestamp", "logger", "exception"}
"""Keys that the log itself puts in."""

IN_MAPPINGS = {"exit_code"}
"""Keys that reach a call in a mapping made elsewhere."""


@dataclass
class Line:
    where: str
    levels: set[str]
    names: list[str]
    keys: set[str] = field(default_factory=set)


def is_logger(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in LOGGERS
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "get_logger" or (node.func.attr == "bind" and is_logger(node.func.value))
    return False


def levels_of(node: ast.expr) -> set[str]:
    if isinstance(node, ast.IfExp):
        return levels_of(node.body) | levels_of(node.orelse)
    if isinstance(node, ast.Attribute) and node.attr in LEVELS and is_logger(node.value):
        return {"error" if node.attr == "exception" else node.attr}
    return set()


def texts_of(node: ast.expr) -> list[str]:
    if isinstance(node, ast.IfExp):
        return texts_of(node.body) + texts_of(node.orelse)
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def keys_of(call: ast.Call) -> set[str]:
    keys = {keyword.arg for keyword in call.keywords if keyword.arg} - {"exc_info"}
    spread = [keyword.value for keyword in call.keywords if keyword.arg is None]
    for mapping in [node for value in spread for node in ast.walk(value) if isinstance(node, ast.Dict)]:
        keys |= {key.value for key in mapping.keys if isinstance(key, ast.Constant)}
    return keys


def lines_in(path: Path) -> Iterator[Line]:
    """What a file logs. A level that is chosen first and called after (`tell = _log.debug if ... `) is seen, too."""
    text = path.read_text()
    if "structlog" not in text:  # `logging` itself: what programs hear that have us in them
        return
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    for function in functions:
        chosen: dict[str, set[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and levels_of(node.value):
                chosen.setdefault(node.targets[0].id, set()).update(levels_of(node.value))
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            levels = levels_of(node.func)
            if isinstance(node.func, ast.Name):
                levels = chosen.get(node.func.id, set())
            if levels:
                names = texts_of(node.args[0])
                if not names:
                    yield from named_by_callers(function, node.args[0], levels)
                yield Line(f"{path.name}:{node.lineno}", levels if names else set(), names, keys_of(node))
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "bind" and is_logger(node.func.value):
                yield Line(f"{path.name}:{node.lineno}", set(), [], keys_of(node))


def named_by_callers(
    function: ast.FunctionDef | ast.AsyncFunctionDef, name: ast.expr, levels: set[str]
) -> Iterator[Line]:
    """A name that is a parameter of a method: it, and keys that are no parameters, are where that is called."""
    assert isinstance(name, ast.Name), ast.unparse(name)
    parameters = [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]
    at = parameters.index(name.id) - 1  # after self
    for path in (ROOT / "agent").rglob("*.py"):
        text = path.read_text()
        if f".{function.name}(" not in text:
            continue
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == function.name:
                reported = [keyword.value for keyword in call.keywords if keyword.arg == name.id] or call.args[
                    at : at + 1
                ]
                names = [text for value in reported for text in texts_of(value)]
                if not reported:
                    continue  # somebody else's method of that name: ours is never called without
                yield Line(f"{path.name}:{call.lineno}", levels, names, keys_of(call) - set(parameters))


@pytest.fixture(scope="module")
def logged():
    return [line for path in sorted((ROOT / "agent").rglob("*.py")) for line in lines_in(path)]


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "logs.md").read_text()


def rows_of(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \|", page.partition("## Events")[2], re.MULTILINE)


def test_every_call_names_its_event(logged):
    assert len(logged) > 100
    assert not [line.where for line in logged if line.levels and not line.names]
    assert not [
        name for line in logged for name in line.names if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)
    ]


def test_the_table_of_events_has_each_that_is_logged_and_no_other(logged, page):
    known = {name for line in logged for name in line.names}
    reported = [name for name, _levels in rows_of(page)]
    assert sorted(reported) == sorted(set(reported))
    assert (known - set(reported), set(reported) - known) == (set(), set())


def test_the_levels_in_the_table_are_those_of_the_calls(logged, page):
    for name, levels in rows_of(page):
        used = set().union(*(line.levels for line in logged if name in line.names))
        assert set(levels.split(", ")) <= used, name


def test_the_table_of_keys_has_each_that_is_used_and_no_other(logged, page):
    used = set().union(*(line.keys for line in logged)) | STEPS | IN_MAPPINGS
    rows = page.partition("## Keys")[2].partition("## Events")[0]
    documented = re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)  # one key a row
    assert sorted(documented) == sorted(set(documented))
    assert (used - set(documented), set(documented) - used) == (set(), set())
