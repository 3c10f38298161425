"""Messages, hints, log events, help and descriptions of settings do not use banned words."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
BANNED = re.compile(r"(?<![a-z])(told|anew|of no use|whoever|for ever|lets go)(?![a-z])", re.IGNORECASE)


def texts_in(path: Path) -> Iterator[tuple[int, str]]:
    """Yield string literals, with the pieces of f-strings, and docstrings that are help or describe a setting."""
    tree = ast.parse(path.read_text())
    described = path.is_relative_to(ROOT / "agent" / "settings")
    statements = {id(node.value): described for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.decorator_list and "cli" in path.parts and node.body:
            statements[id(getattr(node.body[0], "value", None))] = True
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and statements.get(id(node), True):
            yield node.lineno, node.value


def banned_in(path: Path) -> list[str]:
    return [f"{path.name}:{line}: {text}" for line, text in texts_in(path) if BANNED.search(text.replace("_", " "))]


def test_no_user_facing_text_has_a_banned_word():
    assert [found for path in sorted((ROOT / "agent").rglob("*.py")) for found in banned_in(path)] == []


def test_a_planted_message_event_help_and_description_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    planted = {
        "agent/adapters/a.py": 'raise ValueError(f"{1} is of no use")\n_log.info("results_told")\n',
        "agent/entrypoints/cli/b.py": '@app.command()\ndef sync():\n    """Begin anew."""\n',
        "agent/settings/c.py": 'quiet: float\n"""Whoever changes it."""\n',
        "agent/domain/d.py": '"""Told in a docstring."""\n',
    }
    for name, text in planted.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert [len(banned_in(tmp_path / name)) for name in planted] == [2, 1, 1, 0]
