"""Selects the uploads to keep: the last few, and the newest of each of the last days, weeks and months with uploads.

Days are in UTC, as in upload IDs; weeks begin on Monday. Nothing is deleted here.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.domain.databases import main_name
from agent.domain.manifest import Manifest
from agent.domain.naming import check_system_id, upload_time, uploads_prefix

NEWEST = "newest"

MIN_DAYS = 92


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepRules:
    """Number of uploads to keep by each rule; 0 disables the rule. The newest upload is always kept."""

    last: int = 10
    daily: int = 7
    weekly: int = 4
    monthly: int = 12

    def __post_init__(self) -> None:
        if min(self.last, self.daily, self.weekly, self.monthly) < 0:
            raise ValueError("a number of uploads to keep is negative")


def keep(
    uploads: Collection[str],
    rules: KeepRules,
    *,
    needs: Mapping[str, Collection[str]] | None = None,
    spared: Mapping[str, str] | None = None,
    times: Mapping[str, datetime] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return the uploads to keep, newest first, with the reasons: `newest`, `last`, `daily 2026-11-21`, ...

    `needs` maps an upload to those that it cannot be read without: they are kept with it (`needed by ...`), and those
    that they need in turn. `spared` maps uploads that are kept regardless of the rules to the reason. `times` has the
    uploads that were made at another time than that in their ID; the order is by ID in any case. Raises NamingError for
    an invalid upload ID.
    """
    made = {upload: upload_time(upload) for upload in uploads} | dict(times or {})
    newest_first = sorted(set(uploads), key=lambda upload: (upload_time(upload), upload), reverse=True)
    reasons: dict[str, list[str]] = {upload: [] for upload in newest_first}
    for upload in newest_first[:1]:
        reasons[upload].append(NEWEST)
    for upload, reason in (spared or {}).items():
        if upload in reasons:
            reasons[upload].append(reason)
    for upload in newest_first[: rules.last]:
        reasons[upload].append("last")
    for kind, count, period in (
        ("daily", rules.daily, _day),
        ("weekly", rules.weekly, _week),
        ("monthly", rules.monthly, _month),
    ):
        for name, upload in _newest_of_each(newest_first, lambda upload: period(made[upload]), count).items():  # noqa: B023
            reasons[upload].append(f"{kind} {name}")
    _keep_needed(reasons, needs or {})
    return {upload: tuple(found) for upload, found in reasons.items() if found}


def bases_needed(manifest: Manifest) -> frozenset[str]:
    """Return the uploads that an upload's memories cannot be read without.

    Its memories are changes to bases; a reader that lacks a base reads the database instead. So a base is needed if the
    upload does not have that database complete and verified.
    """
    bases = manifest.memories.bases if manifest.memories else {}
    return frozenset(base for name, base in bases.items() if base is not None and not _serves(manifest, name))


def _serves(manifest: Manifest, database: str) -> bool:
    parts = manifest.of(database)
    return any(part.name == main_name(database) for part in parts) and all(part.verified for part in parts)


def _keep_needed(reasons: dict[str, list[str]], needs: Mapping[str, Collection[str]]) -> None:
    waiting = [upload for upload, found in reasons.items() if found]
    for upload in waiting:  # the list grows: needed uploads may need others
        for needed in sorted(needs.get(upload, ())):
            if needed in reasons:
                if not reasons[needed]:
                    waiting.append(needed)
                reasons[needed].append(f"needed by {upload}")


def _newest_of_each(newest_first: Sequence[str], period: Callable[[str], str], count: int) -> dict[str, str]:
    """Return period -> newest upload, for the last `count` periods with uploads. Names of periods sort by time."""
    found: dict[str, str] = {}
    for upload in newest_first:
        found.setdefault(period(upload), upload)
    return {name: found[name] for name in sorted(found, reverse=True)[:count]}


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"


def _month(at: datetime) -> str:
    return f"{at:%Y-%m}"


def _week(at: datetime) -> str:
    year, week, _ = at.isocalendar()
    return f"{year:04d}-W{week:02d}"


def days_kept(rules: KeepRules) -> int:
    """Return the number of days after which a lifecycle rule may delete an upload."""
    return max(MIN_DAYS, rules.daily + 1, 7 * (rules.weekly + 1), 31 * (rules.monthly + 1))


def s3_rule(system_id: str, rules: KeepRules) -> str:
    """Return a lifecycle configuration for S3-compatible stores, as one line of JSON.

    With it the store deletes old uploads, if the agent's credentials may not. It depends on age only: it keeps every
    upload for as long as the rules reach back, and deletes even the last upload of a system that is silent for longer.
    """
    rule = {
        "ID": f"akosha-agent-{check_system_id(system_id)}",
        "Status": "Enabled",
        "Filter": {"Prefix": uploads_prefix(system_id)},
        "Expiration": {"Days": days_kept(rules)},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
    }
    return json.dumps({"Rules": [rule]})


def r2_command(bucket: str, system_id: str, rules: KeepRules) -> str:
    """Return the command that creates the same rule on Cloudflare R2."""
    return (
        f"npx wrangler r2 bucket lifecycle add {bucket} akosha-agent-{check_system_id(system_id)}"
        f" {uploads_prefix(system_id)} --expire-days {days_kept(rules)} --abort-multipart-days 2"
    )
