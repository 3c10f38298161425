"""Finds the calls in agent/ that log: event names, levels and keys."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

AGENT = Path(__file__).parents[2] / "agent"
METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
LOGGERS = {"_log", "log", "logger"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class LogCall:
    """One call of a logger, or of its `bind` (without levels and names)."""

    where: str
    levels: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    keys: frozenset[str] = field(default_factory=frozenset)


def log_calls(agent: Path = AGENT) -> list[LogCall]:
    """Return every call in the package that logs through structlog."""
    return [call for path in sorted(agent.rglob("*.py")) for call in _calls_in(path, agent)]


def _calls_in(path: Path, agent: Path) -> Iterator[LogCall]:
    """Yield the calls of a file, including a logger method that is chosen first: `log = _log.debug if ... else ...`."""
    text = path.read_text(encoding="utf-8")
    if "structlog" not in text:  # `logging` itself: for programs that import the agent
        return
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, Function):
            continue
        chosen: dict[str, frozenset[str]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                chosen[name] = chosen.get(name, frozenset()) | _levels(node.value)
        for node in ast.walk(function):
            if not isinstance(node, ast.Call):
                continue
            where = f"{path.name}:{node.lineno}"
            levels = _levels(node.func)
            if isinstance(node.func, ast.Name):
                levels = chosen.get(node.func.id, frozenset())
            if levels:
                names, keys = _texts(node.args[0]), _keys(node)
                if names:
                    yield LogCall(where, levels, names, keys)
                else:
                    yield from _named_by_callers(function, node, levels, keys, agent)
                    yield LogCall(where, keys=keys)
            elif isinstance(node.func, ast.Attribute) and node.func.attr == "bind" and _is_logger(node.func.value):
                yield LogCall(where, keys=_keys(node))


def _named_by_callers(
    function: Function, logged: ast.Call, levels: frozenset[str], keys: frozenset[str], agent: Path
) -> Iterator[LogCall]:
    """Yield the calls of a method whose parameter is the event's name; its other arguments may be keys."""
    name = logged.args[0]
    assert isinstance(name, ast.Name), ast.unparse(name)
    parameters = [one.arg for one in (*function.args.args, *function.args.kwonlyargs)]
    position = parameters.index(name.id) - 1  # without self
    for path in agent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if f".{function.name}(" not in text:
            continue
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == function.name:
                given = [keyword.value for keyword in call.keywords if keyword.arg == name.id]
                given = given or call.args[position : position + 1]
                if not given:
                    continue  # another method of the same name
                names = tuple(text for value in given for text in _texts(value))
                own = _keys(call) - set(parameters)
                yield LogCall(f"{path.name}:{call.lineno}", levels, names, keys | own)


def _is_logger(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return node.id in LOGGERS
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "get_logger" or (node.func.attr == "bind" and _is_logger(node.func.value))
    return False


def _levels(node: ast.expr) -> frozenset[str]:
    if isinstance(node, ast.IfExp):
        return _levels(node.body) | _levels(node.orelse)
    if isinstance(node, ast.Attribute) and node.attr in METHODS and _is_logger(node.value):
        return frozenset({"error" if node.attr == "exception" else node.attr})
    return frozenset()


def _texts(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.IfExp):
        return _texts(node.body) + _texts(node.orelse)
    return (node.value,) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ()


def _keys(call: ast.Call) -> frozenset[str]:
    keys = {keyword.arg for keyword in call.keywords if keyword.arg} - {"exc_info"}
    spread = [keyword.value for keyword in call.keywords if keyword.arg is None]
    for mapping in (node for value in spread for node in ast.walk(value) if isinstance(node, ast.Dict)):
        keys |= {key.value for key in mapping.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return frozenset(keys)
