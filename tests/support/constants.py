"""Constants of the agent that a test replaces, also in the commands that it starts.

    python tests/support/constants.py '{"module:NAME": value}' [words of `akosha-agent`]

is such a command.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping

Constants = Mapping[str, object]
"""`module:NAME` and its value; of a dataclass, the fields that differ."""


def replaced(constants: Constants) -> dict[tuple[object, str], object]:
    """Return the values by module and name."""
    found = {}
    for place, value in constants.items():
        module_name, _, name = place.partition(":")
        module = importlib.import_module(module_name)
        before = getattr(module, name)
        found[module, name] = dataclasses.replace(before, **value) if isinstance(value, Mapping) else value
    return found


def replace_constants(constants: Constants) -> None:
    """Replace them in this process, for good."""
    for (module, name), value in replaced(constants).items():
        setattr(module, name, value)


if __name__ == "__main__":
    replace_constants(json.loads(sys.argv[1]))
    sys.argv = ["akosha-agent", *sys.argv[2:]]
    importlib.import_module("agent.__main__").main()
