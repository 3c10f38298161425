"""Parses a settings file: YAML with the safe loader, top-level values only.

Session-Buddy's files have many keys that are not the agent's. Only the wanted values are constructed, so that others
cannot cause errors. Messages never quote a file, because it may contain a token.
"""

from collections.abc import Callable

import yaml

from agent.domain.errors import SettingsError

MAX_NUMBER_CHARACTERS = 64
"""Longer numbers are rejected before they are parsed: no setting needs one, and Python cannot print integers of
thousands of digits.
"""

MAX_MERGED = 10_000
"""Maximum number of keys of a mapping and all that it merges (`<<`). Merges of merges multiply: a file of one kilobyte
could take all memory.
"""

MAX_FIELDS = 20
"""Maximum number of items of a list that has mappings, of keys of these, and of items of a list in them."""

_MERGE = "tag:yaml.org,2002:merge"


def top_level(data: bytes, name: str, wanted: Callable[[str], bool]) -> dict[str, object]:
    """Return the wanted top-level values of a YAML mapping.

    Raises SettingsError, with `name`, if the data is not YAML or not a mapping.
    """
    line, column = 1, 1
    values: dict[str, object] = {}
    try:
        loader = yaml.SafeLoader(data)
        try:
            root = loader.get_single_node()
            if root is None or root.tag == "tag:yaml.org,2002:null":
                return {}
            if not isinstance(root, yaml.MappingNode):
                raise SettingsError(
                    f"{name} is not a mapping of keys to values", hint="write lines such as akosha_key: value"
                )
            if _merged_size(root, {}) > MAX_MERGED:
                raise SettingsError(f"{name} merges too many keys (<<)", hint="write the keys without merging them")
            loader.flatten_mapping(root)
            for key, value in root.value:
                if isinstance(key, yaml.ScalarNode) and wanted(key.value):
                    line, column = value.start_mark.line + 1, value.start_mark.column + 1
                    _check_number(value, name, line, column)
                    values[key.value] = _value(loader, value)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        if mark is not None:
            line, column = mark.line + 1, mark.column + 1
        elif isinstance(error, yaml.reader.ReaderError):
            line, column = _position(data, error)
        # No `from error`: the parser's message quotes the line, which may contain a token.
        raise SettingsError(
            f"{name} is not valid YAML at line {line}, column {column}",
            hint="put values with special characters in quotes",
        ) from None
    return values


def _merged_size(mapping: yaml.MappingNode, known: dict[int, int]) -> int:
    """Return the number of keys of a mapping with all that it merges. Raises RecursionError for a loop."""
    if id(mapping) not in known:
        size = 0
        for key, value in mapping.value:
            if key.tag != _MERGE:
                size += 1
                continue
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            size += sum(_merged_size(one, known) for one in merged if isinstance(one, yaml.MappingNode))
        known[id(mapping)] = size
    return known[id(mapping)]


def _check_number(node: yaml.Node, name: str, line: int, column: int) -> None:
    is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    if is_number and len(node.value) > MAX_NUMBER_CHARACTERS:
        raise SettingsError(
            f"{name} has a number of {len(node.value):,} characters at line {line}, column {column}",
            hint=f"a number has at most {MAX_NUMBER_CHARACTERS} characters; put a text in quotes",
        )


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        try:
            return loader.construct_object(node)
        except (LookupError, AttributeError) as error:  # what PyYAML raises for a text that does not fit its tag
            raise ValueError(f"not a value of {node.tag}") from error
    if not isinstance(node, yaml.SequenceNode):
        return {}
    if len(node.value) > MAX_FIELDS and not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return {}  # aliases may repeat a long mapping many times
    return [_item(loader, item) for item in node.value]


def _item(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """Return an item of a list. A mapping has scalars and lists of scalars; everything else in it is empty."""
    if not isinstance(node, yaml.MappingNode):
        return _value(loader, node) if isinstance(node, yaml.ScalarNode) else []
    if len(node.value) > MAX_FIELDS:
        return {}
    return {key.value: _field(loader, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}


def _field(loader: yaml.SafeLoader, node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return _value(loader, node)
    items = node.value if isinstance(node, yaml.SequenceNode) and len(node.value) <= MAX_FIELDS else []
    return [_value(loader, item) for item in items if isinstance(item, yaml.ScalarNode)]


def _position(data: bytes, error: yaml.reader.ReaderError) -> tuple[int, int]:
    # PyYAML counts characters up to a forbidden character, and bytes up to invalid UTF-8.
    counts_characters = error.encoding == "unicode"
    before = (data if counts_characters else data[: error.position]).decode(errors="replace")
    lines = (before[: error.position] if counts_characters else before).split("\n")
    return len(lines), len(lines[-1]) + 1
