"""The time zone of this machine: the naive times in Session-Buddy's databases are of it.

By its IANA name where it has one, so that a time in winter gets winter's offset; else by the offset of now. Reads
files: not for the event loop.
"""

import re
import time
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agent.domain.errors import WireError

_OFFSET = re.compile(r"([+-])([01]\d|2[0-3]):([0-5]\d)")


def local_zone() -> tuple[tzinfo, str]:
    """Return the zone as it is now (laptops travel), and the name by which `zone_named` finds it. Never raises.

    Where the zone has no IANA name, this machine has no data for it (minimal containers), or its clock shows another
    time than the name says, it is the offset of now.
    """
    import tzlocal  # noqa: PLC0415 - only who reads memories needs it

    time.tzset()
    clock = datetime.now().astimezone()
    try:
        tzlocal.reload_localzone()
        name = tzlocal.get_localzone_name()
        zone = ZoneInfo(name) if name else None
    except (LookupError, ValueError, OSError, Warning):
        zone = None  # TZ or a file names what is not there, or they contradict each other
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
        return UTC  # needs no data
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: a name that is a directory's
        raise WireError(
            f"{name[:80]!r} is no time zone that this machine knows",
            hint="install the system's time zone data (tzdata)",
        ) from error


def _offset(offset: timedelta) -> tuple[tzinfo, str]:
    minutes = round(offset.total_seconds() / 60)
    sign, size = "-" if minutes < 0 else "+", abs(minutes)
    name = f"{sign}{size // 60:02}:{size % 60:02}"
    return zone_named(name), name
