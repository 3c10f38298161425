"""The log events: meanings from docs/log_events.toml, levels and keys from the calls that log."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from docs.generator.log_calls import log_calls
from docs.generator.markdown import code, codes, page, table

CATALOGUE = Path(__file__).parents[1] / "log_events.toml"
SEVERITY = ("debug", "info", "warning", "error", "critical")
INTRODUCTION = """\
[Logs](../logs.md) explains the format, the log file and the masking of secrets.

An event with several levels is logged at the lower one if it repeats an earlier event, or if nobody waits for its
outcome. Lines about a request also have the keys that identify it, such as `request_id` and `method`."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The documented keys, and the events by section: name -> meaning."""

    keys: Mapping[str, str]
    sections: Mapping[str, Mapping[str, str]]

    @classmethod
    def read(cls) -> "Catalogue":
        content = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
        return cls(content["keys"], content["events"])


def text() -> str:
    """Return the page."""
    catalogue, calls = Catalogue.read(), log_calls()
    blocks = [INTRODUCTION, "## Events"]
    for section, events in catalogue.sections.items():
        rows = []
        for name, meaning in events.items():
            own = [call for call in calls if name in call.names]
            levels = set().union(*(call.levels for call in own))
            keys = set().union(*(call.keys for call in own))
            rows.append((code(name), ", ".join(sorted(levels, key=SEVERITY.index)), meaning, codes(sorted(keys))))
        blocks += [f"### {section}", table(("event", "level", "meaning", "keys"), sorted(rows))]
    rows_of_keys = [(code(key), meaning) for key, meaning in catalogue.keys.items()]
    blocks += ["## Keys", "A key has the same meaning in every event.", table(("key", "meaning"), rows_of_keys)]
    return page("Log events", "docs/log_events.toml and the calls in agent", *blocks)
