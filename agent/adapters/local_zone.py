"""The time zone of this machine, in which Session-Buddy's databases store naive times.

The zone is an IANA zone if the machine has one, so that a winter time gets the winter offset; otherwise it is the
current offset. Blocks on files: call it in a thread.
"""

import re
import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agent.domain.errors import WireError

_OFFSET = re.compile(r"([+-])([01]\d|2[0-3]):([0-5]\d)")


def local_zone() -> tuple[tzinfo, str]:
    """Return the current zone (laptops travel) and its name for `zone_named`. Never raises.

    The zone is the current offset if it has no IANA name, if the machine has no data for it (minimal containers), or if
    the clock's offset differs from the zone's.
    """
    import tzlocal  # noqa: PLC0415 - only reading memories needs it

    time.tzset()
    clock = datetime.now().astimezone()
    try:
        tzlocal.reload_localzone()
        name = tzlocal.get_localzone_name()
        zone = ZoneInfo(name) if name else None
    except (LookupError, ValueError, OSError, Warning):
        zone = None  # TZ or a file names an unknown zone, or they contradict each other
    if zone is not None and clock.astimezone(zone).utcoffset() == clock.utcoffset():
        return zone, zone.key
    return _offset(clock.utcoffset() or timedelta())


def zone_named(name: str) -> tzinfo:
    """Return the zone of an IANA name or an offset such as `+02:00`. Raises WireError for anything else.

    >>> zone_named("-03:30").utcoffset(None)
    datetime.timedelta(days=-1, seconds=73800)
    """
    if match := _OFFSET.fullmatch(name):
        sign, hours, minutes = match.groups()
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        return timezone(-offset if sign == "-" else offset)
    if name == "UTC":
        return UTC  # needs no time zone data
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: the name of a directory
        raise WireError(
            f"unknown time zone {name[:80]!r}",
            hint="install the system's time zone data (tzdata)",
        ) from error


def _offset(offset: timedelta) -> tuple[tzinfo, str]:
    minutes = round(offset.total_seconds() / 60)
    sign, size = "-" if minutes < 0 else "+", abs(minutes)
    name = f"{sign}{size // 60:02}:{size % 60:02}"
    return zone_named(name), name
