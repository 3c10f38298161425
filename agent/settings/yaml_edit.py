"""Changes single keys of a YAML file, and keeps everything else as it is: comments, order, blank lines.

PyYAML has no way to do so, and reports the position of each key and value instead: only those characters are replaced.
The result is parsed again, and refused if anything but the changed keys differs. (ruamel.yaml keeps comments itself,
but is another parser for the same files, and a dependency for this alone.)
"""

from collections.abc import Mapping
from contextlib import suppress

import yaml

from agent.domain.errors import SettingsError
from agent.settings.validators import PREFIX
from agent.settings.yaml_values import top_level

Scalar = str | int | float | bool


def edited(data: bytes, changes: Mapping[str, Scalar | None], name: str) -> bytes:
    """Return the bytes of a file with changed top-level keys; None removes a key. The prefix `akosha_` is ignored.

    New keys are appended. Raises SettingsError, with `name`, if the file is not valid or its layout does not allow the
    change (a mapping in braces, merged keys).
    """
    before = top_level(data, name, lambda _: True)
    expected = {key: value for key, value in before.items() if key.removeprefix(PREFIX) not in changes}
    after: dict[str, object] = {}
    with suppress(yaml.YAMLError, UnicodeDecodeError, SettingsError):
        text = data.decode("utf-8-sig")
        for key, value in changes.items():
            text = _changed(text, key, value)
        result = text.encode()
        after = top_level(result, name, lambda _: True)
    kept = {key: value for key, value in after.items() if key.removeprefix(PREFIX) not in changes}
    given = {key.removeprefix(PREFIX): value for key, value in after.items() if key not in kept}
    if kept != expected or given != {key: value for key, value in changes.items() if value is not None}:
        raise SettingsError(
            f"{name} cannot be changed by a command", hint="edit it by hand: one line `key: value` each"
        )
    return result


def _changed(text: str, key: str, value: Scalar | None) -> str:
    nodes = _nodes(text, key)
    if value is None:
        for name, found in reversed(nodes):
            start = text.rfind("\n", 0, name.start_mark.index) + 1
            end = text.find("\n", max(_end(text, found), name.end_mark.index))
            text = text[:start] + ("" if end < 0 else text[end + 1 :])
        return text
    written = yaml.safe_dump({"key": value}, allow_unicode=True, width=float("inf"))[len("key: ") :].removesuffix("\n")
    if nodes:
        name, found = nodes[-1]
        start, end = found.start_mark.index, _end(text, found)
        if found.start_mark.line > name.end_mark.line:  # the new value is written on the key's line, before a comment
            start = text.index(":", name.end_mark.index) + 1
            comment = text[start : text.index("\n", start)].rstrip()
            return f"{text[:start]} {written}{comment}{text[end:]}"
        separator = "" if text[start - 1 : start].isspace() else " "
        return f"{text[:start]}{separator}{written}{text[end:]}"
    line_end = "" if not text or text.endswith("\n") else "\n"
    return f"{text}{line_end}{key}: {written}\n"


def _end(text: str, node: yaml.Node) -> int:
    """Return the position after a value. PyYAML's mark of a block is after the comments and blank lines behind it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip())


def _nodes(text: str, key: str) -> list[tuple[yaml.Node, yaml.Node]]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    return [(name, value) for name, value in pairs if str(name.value).removeprefix(PREFIX) == key]
