"""All checks, in the order they are shown in."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from agent.entrypoints.doctor import (
    bus_checks,
    database_checks,
    delivery_checks,
    keeping_checks,
    machine_checks,
    settings_checks,
)
from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Check, Finding, skipped

SETTINGS, MACHINE, DELIVERY, KEEPING = "settings", "this machine", "delivery", "at work"

_MOUNT = "is it on a share or disk that hangs? mount it again, or set another directory"
_NETWORK = "check the network, and the address in the settings"


@dataclass(frozen=True, slots=True)
class Entry:
    """A check: `always` says that it makes sense without settings, with the directories and defaults alone."""

    group: str
    name: str
    look: Callable[[CheckContext], Awaitable[Sequence[Finding]]]
    silent_cure: str
    always: bool = True


ALL = (
    Entry(SETTINGS, settings_checks.NAME, settings_checks.sources, _MOUNT),
    Entry(SETTINGS, settings_checks.BUILT_IN, settings_checks.built_in_sync, _MOUNT),
    Entry(MACHINE, machine_checks.DATA, machine_checks.data_directory, _MOUNT),
    Entry(MACHINE, database_checks.DATABASES, database_checks.databases, _MOUNT),
    Entry(MACHINE, machine_checks.STATE, machine_checks.state_directory, _MOUNT),
    Entry(MACHINE, machine_checks.SPACE, machine_checks.free_space, _MOUNT),
    Entry(MACHINE, database_checks.LEDGER, database_checks.ledger, _MOUNT),
    Entry(MACHINE, machine_checks.INOTIFY, machine_checks.inotify, _MOUNT),
    Entry(DELIVERY, delivery_checks.CREDENTIALS, delivery_checks.credentials, _NETWORK, always=False),
    Entry(DELIVERY, delivery_checks.BUCKET, delivery_checks.bucket, _NETWORK, always=False),
    Entry(DELIVERY, delivery_checks.LEFTOVERS, delivery_checks.leftovers, _NETWORK, always=False),
    Entry(DELIVERY, delivery_checks.AKOSHA, delivery_checks.akosha, _NETWORK, always=False),
    Entry(DELIVERY, delivery_checks.CLOCK, delivery_checks.clock, _NETWORK, always=False),
    Entry(DELIVERY, bus_checks.NATS, bus_checks.nats, _NETWORK, always=False),
    Entry(KEEPING, keeping_checks.AGENT, keeping_checks.agent, keeping_checks.RESTART),
    Entry(KEEPING, keeping_checks.WARNINGS, keeping_checks.warnings, _MOUNT),
    Entry(KEEPING, keeping_checks.SERVICE, keeping_checks.service, "systemctl --user status (macOS: launchctl list)"),
    Entry(KEEPING, keeping_checks.HOOK, keeping_checks.hook, _MOUNT),
    Entry(KEEPING, keeping_checks.VERSIONS, keeping_checks.versions, _MOUNT),
)


def checks(ground: CheckContext, entries: Sequence[Entry] = ALL) -> list[Check]:
    """Return the checks, ready to be made: those that need settings are skipped where these are wrong."""
    return [
        Check(
            group=entry.group,
            name=entry.name,
            look=partial(entry.look if ground.trouble is None or entry.always else _without(entry.name), ground),
            silent_cure=entry.silent_cure,
        )
        for entry in entries
    ]


def _without(name: str) -> Callable[[CheckContext], Awaitable[Sequence[Finding]]]:
    async def look(_ground: CheckContext) -> list[Finding]:
        return [skipped(name, "the settings are wrong: where to look is not known")]

    return look
