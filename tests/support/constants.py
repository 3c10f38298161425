"""Replaces constants of the agent, in this process or in a command that a test starts:

python tests/support/constants.py '{"module:NAME": value}' [arguments of `akosha-agent`]
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Mapping
from datetime import timedelta

Constants = Mapping[str, object]
"""`module:NAME` -> its value; for a dataclass a mapping of the fields to replace, for a timedelta of its arguments."""


def replaced(constants: Constants) -> dict[tuple[object, str], object]:
    """Return the new values by module and name."""
    values = {}
    for path, value in constants.items():
        module_name, _, name = path.partition(":")
        module = importlib.import_module(module_name)
        before = getattr(module, name)
        if isinstance(before, timedelta) and isinstance(value, Mapping):
            values[module, name] = timedelta(**value)
        else:
            values[module, name] = dataclasses.replace(before, **value) if isinstance(value, Mapping) else value
    return values


def replace_constants(constants: Constants) -> None:
    """Replace the constants in this process, permanently."""
    for (module, name), value in replaced(constants).items():
        setattr(module, name, value)


if __name__ == "__main__":
    replace_constants(json.loads(sys.argv[1]))
    sys.argv = ["akosha-agent", *sys.argv[2:]]
    importlib.import_module("agent.__main__").main()
