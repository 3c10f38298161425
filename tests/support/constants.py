"""Replaces constants of the agent, in this process or in a command that a test starts:

REPLACED_CONSTANTS='{"module:NAME": value}' python tests/support/constants.py [arguments of `akosha-agent`]
"""

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Mapping
from datetime import timedelta

VARIABLE = "REPLACED_CONSTANTS"

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


def replace_from_environment() -> None:
    """Replace the constants that `Machine` has put into the environment of this command."""
    replace_constants(json.loads(os.environ.get(VARIABLE, "{}")))


if __name__ == "__main__":
    replace_from_environment()
    sys.argv[0] = "akosha-agent"
    importlib.import_module("agent.__main__").main()
