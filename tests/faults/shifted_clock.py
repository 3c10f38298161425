"""`akosha-agent` whose wall clock and time zone a test changes while it runs.

    python shifted_clock.py FILE run --data-dir ...

FILE has the seconds to add to the system's time, and the time zone (`TZ`).
"""

import os
import sys
import time
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

from agent.__main__ import main
from agent.adapters import local_zone, system_clock
from agent.adapters.akosha import errors
from agent.adapters.state_directory import directory
from tests.support.constants import replace_from_environment

SHIFT = Path()


class ShiftedTime(datetime):
    """`datetime` with another present time."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        seconds, os.environ["TZ"] = SHIFT.read_text().split()
        time.tzset()
        shifted = (datetime.now(UTC) + timedelta(seconds=float(seconds))).astimezone(tz)
        return shifted if tz else shifted.replace(tzinfo=None)


def set_clock(shift: Path, seconds: float, zone: str) -> None:
    """Set the clock of the process that was started with this file."""
    draft = shift.with_suffix(".draft")
    draft.write_text(f"{seconds} {zone}")
    draft.replace(shift)


if __name__ == "__main__":
    SHIFT = Path(sys.argv.pop(1))
    for module in (system_clock, local_zone, errors, directory):
        module.datetime = ShiftedTime
    replace_from_environment()
    main()
