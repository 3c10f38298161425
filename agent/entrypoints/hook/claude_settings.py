"""Claude Code's `settings.json` as a document: find the agent's hook in it, add it, remove it.

    {"hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "akosha-agent hook session-end ..."}]}]}}
    {"hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "/bin/akosha-agent", "args": ["hook", ...]}]}]}}

All other values, the order of keys, the indentation, line endings and trailing whitespace are kept. A file that cannot
be written back without loss (comments, duplicate keys, numbers out of range) is refused.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from agent.domain.errors import SettingsError
from agent.entrypoints.hook.hook_command import HookCommand, parsed

CONFIG_DIR = "CLAUDE_CONFIG_DIR"
HOOKS, EVENT = "hooks", "SessionEnd"
CONTAINERS = frozenset({HOOKS, EVENT})
TIMEOUT_SECONDS = 5
"""Claude Code's time limit for the hook, which takes a fraction of a second."""

_DEFAULT_INDENT = "  "
_FIRST_KEY = re.compile(r'\n([ \t]*)"')
_EDIT_HINT = "correct the file, or move it away"
_BOM = "\ufeff"


def settings_file(environ: Mapping[str, str], home: Path) -> Path:
    """Return the path of Claude Code's user settings."""
    given = environ.get(CONFIG_DIR, "")
    directory = Path(given).expanduser().absolute() if given else home / ".claude"
    return directory / "settings.json"


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a JSON text. `indent`: None for a text on one line; `end`: whitespace after the last bracket."""

    indent: str | None = _DEFAULT_INDENT
    separators: tuple[str, str] = (",", ": ")
    newline: str = "\n"
    end: str = "\n"
    start: str = ""
    escaped: bool = False

    @classmethod
    def of(cls, text: str) -> "Layout":
        body = text.strip()
        first = _FIRST_KEY.search(body)
        indent = first[1] if first else _DEFAULT_INDENT if "\n" in body or '"' not in body else None
        spaced = indent is not None or not re.search(r'":\S', body)
        return cls(
            indent=indent,
            separators=("," if indent is not None else ", ", ": ") if spaced else (",", ":"),
            newline="\r\n" if "\r\n" in text else "\n",
            end=text[len(text.rstrip()) :],
            start=_BOM if text.startswith(_BOM) else "",
            escaped="\\u" in text,
        )

    def render(self, document: Mapping[str, object]) -> bytes:
        body = json.dumps(document, indent=self.indent, separators=self.separators, ensure_ascii=self.escaped)
        return (self.start + body.replace("\n", self.newline) + self.end).encode()


@dataclass(slots=True)
class ClaudeSettings:
    """A settings file: its document, and the bytes that were read (None if the file does not exist)."""

    path: Path
    document: dict[str, object]
    data: bytes | None = None
    layout: Layout = Layout()

    @classmethod
    def read(cls, path: Path) -> "ClaudeSettings":
        """Read a settings file; if it does not exist, the document is empty. Raises SettingsError as `parse` does."""
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls(path, {})
        except OSError as error:
            raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="check its owner and mode") from error
        return cls.parse(path, data)

    @classmethod
    def parse(cls, path: Path, data: bytes) -> "ClaudeSettings":
        """Parse the bytes of the file at `path`.

        Raises SettingsError if they are not JSON (with line and column), cannot be written back without loss, or do not
        have the structure that Claude Code's documentation describes.
        """
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            raise SettingsError(
                f"{path} is not UTF-8: byte {error.start}, line {line}", hint="save it as UTF-8"
            ) from error
        document = _decode(text.removeprefix(_BOM), path)
        hooks = document.get(HOOKS, {})
        if not isinstance(hooks, dict):
            raise _unexpected(path, HOOKS, "an object")
        if not isinstance(hooks.get(EVENT, []), list):
            raise _unexpected(path, f"{HOOKS}.{EVENT}", "a list")
        return cls(path, document, data, Layout.of(text))

    @property
    def commands(self) -> list[HookCommand]:
        """The agent's commands in the file."""
        return [command for _, _, command in self._installed()]

    @property
    def hooks_disabled(self) -> bool:
        """Whether hooks are disabled in Claude Code (disableAllHooks)."""
        return self.document.get("disableAllHooks") is True

    def insert(self, command: HookCommand) -> frozenset[str]:
        """Add the agent's session-end hook, or update it if it is installed.

        Returns the containers that were created. Raises SettingsError if the command is not Unicode.
        """
        try:
            str(command).encode()
        except UnicodeEncodeError as error:
            raise SettingsError("a path in the command is not UTF-8", hint="choose another --state-dir") from error
        if installed := list(self._installed()):
            for _, hook, _ in installed:
                if not command.with_args:
                    hook.pop("args", None)
                hook.update(command.fields)
            return frozenset()
        made = {HOOKS} - self.document.keys()
        hooks = self.document.setdefault(HOOKS, {})
        assert isinstance(hooks, dict)
        made |= {EVENT} - hooks.keys()
        hook = {"type": "command", **command.fields, "timeout": TIMEOUT_SECONDS}
        hooks.setdefault(EVENT, []).append({"hooks": [hook]})
        return frozenset(made)

    def remove(self, made: frozenset[str] = CONTAINERS) -> None:
        """Remove the agent's hooks, and the containers of `made` that are then empty."""
        for entry, hook, _ in list(self._installed()):
            inner = entry["hooks"]
            inner[:] = [one for one in inner if one is not hook]
            if not inner:
                entries = self._entries()
                entries[:] = [one for one in entries if one is not entry]
        hooks = self.document.get(HOOKS)
        if isinstance(hooks, dict) and EVENT in made and hooks.get(EVENT) == []:
            del hooks[EVENT]
            if not hooks and HOOKS in made:
                del self.document[HOOKS]

    def render(self) -> bytes:
        """Return the document in the layout of the file. Raises SettingsError if it is nested too deeply."""
        try:
            return self.layout.render(self.document)
        except RecursionError as error:
            raise SettingsError(f"{self.path} is nested too deeply to be written", hint=_EDIT_HINT) from error

    def _entries(self) -> list[object]:
        hooks = self.document.get(HOOKS, {})
        assert isinstance(hooks, dict)
        entries: list[object] = hooks.get(EVENT, [])
        return entries

    def _installed(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], HookCommand]]:
        """Yield the entry, the hook and the command of each of the agent's hooks."""
        for entry in self._entries():
            if not isinstance(entry, dict) or not isinstance(entry.get("hooks"), list):
                continue
            for hook in entry["hooks"]:
                if isinstance(hook, dict) and (command := parsed(hook.get("command"), hook.get("args"))):
                    yield entry, hook, command


class _LossyError(Exception):
    """Input that the JSON decoder accepts and the encoder would not write back unchanged."""


def _decode(text: str, path: Path) -> dict[str, object]:
    try:
        document: object = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        position = f"line {error.lineno}, column {error.colno}"
        raise SettingsError(f"{path} is not JSON: {error.msg} at {position}", hint=_EDIT_HINT) from error
    except RecursionError as error:
        raise SettingsError(f"{path} is nested too deeply to be read", hint=_EDIT_HINT) from error
    except _LossyError as error:
        raise SettingsError(f"{path} is not JSON: {error}", hint=_EDIT_HINT) from error
    except ValueError as error:  # a number with thousands of digits
        raise SettingsError(f"{path} cannot be read: {error}", hint=_EDIT_HINT) from error
    if not isinstance(document, dict):
        raise _unexpected(path, "the document", "an object")
    return document


def _unique(members: Sequence[tuple[str, object]]) -> dict[str, object]:
    document = dict(members)
    if len(document) < len(members):
        keys = [key for key, _ in members]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        raise _LossyError(f"the key {json.dumps(duplicate)} occurs twice in one object")
    return document


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _LossyError(f"{text} is out of range")
    return number


def _no_constant(text: str) -> NoReturn:
    raise _LossyError(f"{text} is not a number")


def _unexpected(path: Path, name: str, expected: str) -> SettingsError:
    return SettingsError(
        f"{path}: {name} is not {expected}", hint="correct it, as Claude Code's documentation describes"
    )
