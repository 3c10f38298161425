"""Claude Code's `settings.json`: what stands in it of ours, and its text with our hook in it or out of it.

    {"hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "akosha-agent hook session-end ..."}]}]}}
    {"hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "/bin/akosha-agent", "args": ["hook", ...]}]}]}}

Whatever else is there belongs to the user, and stays as it is, byte for byte.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.entrypoints.hook import json_text
from agent.entrypoints.hook.command_line import HookCommand, parsed
from agent.entrypoints.hook.json_text import Box, Piece

HOOKS, EVENT = "hooks", "SessionEnd"
COMMAND, ARGS = "command", "args"
FILE = "file"
ALL_MADE = frozenset({HOOKS, EVENT})
TIMEOUT_SECONDS = 5
"""What Claude Code may wait; we are done in a fraction of a second."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the settings file says: commands of ours in it; why it cannot be used (`trouble`), "" if it can;
    whether Claude Code is told to run no hooks at all (`switched_off`).
    """

    path: Path
    commands: Sequence[HookCommand] = ()
    trouble: str = ""
    switched_off: bool = False

    @property
    def installed(self) -> bool:
        return bool(self.commands)


@dataclass(frozen=True, slots=True)
class Inserted:
    """A text with our hook in it; what had to be made around it, and what stood between the brackets that it is in."""

    text: str
    made: frozenset[str] = frozenset()
    gap: str = ""


def look(path: Path) -> Found:
    """Look for our hook in a settings file. What is wrong with the file is in the answer; nothing is raised."""
    try:
        text = read(path)
        if text is None:
            return Found(path)
        ours = [command for _, _, _, command in _ours(text, path)]
        document = json_text.value_of(text, json_text.top(text))
        off = isinstance(document, dict) and document.get("disableAllHooks") is True
        return Found(path, ours, switched_off=off)
    except SettingsError as error:
        return Found(path, trouble=str(error))


def read(path: Path) -> str | None:
    """Return the settings' text, None where there is no file.

    Raises SettingsError where it cannot be read, is no JSON (with line and column), or is not shaped as Claude Code
    has it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}", hint="see to its owner and mode") from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SettingsError(
            f"{path} is not UTF-8: byte {error.start}, in line {line}", hint="save it as UTF-8"
        ) from error
    json_text.checked(text, str(path))
    list(_ours(text, path))
    return text


def inserted(text: str, command: HookCommand, path: Path) -> Inserted:
    """Return the text with this command for the session's end; one of ours that is there is brought up to date."""
    there = list(_ours(text, path))
    if there:
        for _, _, hook, _ in reversed(there):
            text = _updated(text, hook, command)
        return Inserted(text)
    entry = {"hooks": [{"type": "command", **command.fields, "timeout": TIMEOUT_SECONDS}]}
    box = json_text.opened(text, json_text.top(text))
    made = set()
    for key, inner in ((HOOKS, {EVENT: [entry]}), (EVENT, [entry])):
        found = box.member(key)
        if found is None:
            made.add(key)
            if key == HOOKS:
                made.add(EVENT)
            return Inserted(json_text.added(text, box, key, inner), frozenset(made), _gap(text, box))
        box = json_text.opened(text, found.value)
    return Inserted(json_text.added(text, box, "", entry), frozenset(), _gap(text, box))


def withdrawn(text: str, path: Path, made: frozenset[str] = ALL_MADE, gap: str = "") -> str:
    """Return the text without our hook, and without what of `made` is empty then; `gap` as `Inserted` has it."""
    while there := list(_ours(text, path)):
        entry, entry_box, hook, _ = there[-1]
        inner = _hooks_of(text, entry)
        assert inner is not None
        if len(inner.pieces) > 1:
            text = json_text.removed(text, inner, hook, "")
            continue
        top = json_text.opened(text, json_text.top(text))
        hooks = top.member(HOOKS)
        assert hooks is not None
        events = json_text.opened(text, hooks.value)
        event = events.member(EVENT)
        assert event is not None
        if len(entry_box.pieces) > 1 or EVENT not in made:
            text = json_text.removed(text, entry_box, entry, gap)
        elif len(events.pieces) > 1 or HOOKS not in made:
            text = json_text.removed(text, events, event, gap)
        else:
            text = json_text.removed(text, top, hooks, gap)
    return text


def is_empty(text: str) -> bool:
    """Say whether the settings say nothing at all."""
    return json_text.value_of(text, json_text.top(text)) == {}


def _updated(text: str, hook: Piece, command: HookCommand) -> str:
    """Return the text with this command in a hook of ours; what else the hook says stays."""
    fields = command.fields
    there = json_text.opened(text, hook.value).member(ARGS)
    if there and ARGS not in fields:
        text = json_text.removed(text, json_text.opened(text, hook.value), there, "")
    for key, value in fields.items():
        box = json_text.opened(text, hook.value)
        found = box.member(key)
        if found is None:
            text = json_text.added(text, box, key, value)
        elif json_text.value_of(text, found.value) != value:
            text = json_text.replaced(text, found.value, value)
    return text


def _ours(text: str, path: Path) -> Iterator[tuple[Piece, Box, Piece, HookCommand]]:
    """Yield for each hook of ours: its entry, the list of entries, the hook, and its command. Raises SettingsError."""
    top = json_text.top(text)
    _expect(text, top, "{", path, "")
    hooks = json_text.opened(text, top).member(HOOKS)
    if hooks is None:
        return
    _expect(text, hooks.value, "{", path, HOOKS)
    event = json_text.opened(text, hooks.value).member(EVENT)
    if event is None:
        return
    _expect(text, event.value, "[", path, f"{HOOKS}.{EVENT}")
    entries = json_text.opened(text, event.value)
    for entry in entries.pieces:
        inner = _hooks_of(text, entry)
        for hook in inner.pieces if inner else ():
            if command := _command_in(text, hook):
                yield entry, entries, hook, command


def _command_in(text: str, hook: Piece) -> HookCommand | None:
    """Return a hook's command if it is one of ours."""
    if text[hook.value] != "{":
        return None
    box = json_text.opened(text, hook.value)
    command, arguments = box.member(COMMAND), box.member(ARGS)
    if command is None:
        return None
    return parsed(
        json_text.value_of(text, command.value), json_text.value_of(text, arguments.value) if arguments else None
    )


def _hooks_of(text: str, entry: Piece) -> Box | None:
    """Return the list of hooks of an entry; None where it has none that we understand."""
    if text[entry.value] != "{":
        return None
    found = json_text.opened(text, entry.value).member(HOOKS)
    return json_text.opened(text, found.value) if found and text[found.value] == "[" else None


def _expect(text: str, at: int, bracket: str, path: Path, name: str) -> None:
    if text[at] != bracket:
        line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
        what = {"{": "an object", "[": "a list"}[bracket]
        raise SettingsError(
            f"{path}: {name or 'the document'} is not {what} (line {line}, column {column})",
            hint="mend it, as Claude Code's documentation has it",
        )


def _gap(text: str, box: Box) -> str:
    return "" if box.pieces else text[box.inside : box.end]
