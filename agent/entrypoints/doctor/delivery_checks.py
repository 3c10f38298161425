"""Where memories go: the bucket, or the directory in its place, and the Akosha server; and what time it is there."""

from contextlib import suppress

from agent.application.memories.push import NO_EMBEDDING
from agent.application.monitoring.status import DELIVERED_TO_AKOSHA
from agent.application.sync.http import CONFIRMED
from agent.application.sync.push_outcome import EMBEDDING_CURE
from agent.domain.errors import NotPermitted, SinkError, StoreError
from agent.domain.routing import HTTP
from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Finding, Level, error, ok, skipped, warning, wrong
from agent.entrypoints.results import when
from agent.settings import without_credentials

CREDENTIALS, BUCKET, LEFTOVERS, CLOCK, AKOSHA = "credentials", "bucket", "leftovers", "clock", "Akosha"
AKOSHA_MEMORIES = "memories in Akosha"

NO_CLOUD = "no cloud is set up"
SET_UP = f"{NO_CLOUD} (akosha_cloud_bucket, or a file:///dir akosha_cloud_endpoint, would)"
SET_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run aws configure"
START_AKOSHA = "start it, or set akosha_http_endpoint"
LIFECYCLE = "akosha-agent sync removes them; so does a lifecycle rule that aborts incomplete uploads after a day"

WARN_SECONDS, REFUSED_SECONDS = 60.0, 300.0
"""Akosha refuses what comes from further ahead than five minutes."""

_PARTS = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "~/.aws/credentials",
    "config-file": "~/.aws/config",
    "assume-role": "a role that is assumed",
    "assume-role-with-web-identity": "a role that is assumed by a web identity",
    "sso": "AWS SSO",
    "login": "aws login",
    "custom-process": "a process that ~/.aws/config names",
    "boto-config": "a boto configuration file",
    "container-role": "the role of this container",
    "iam-role": "the role of this instance",
}


async def credentials(ground: CheckContext) -> list[Finding]:
    if (why := _no_s3(ground)) is not None:
        return [skipped(CREDENTIALS, why)]
    key = await ground.examination.credentials()
    if key is None:
        return [error(CREDENTIALS, "the AWS chain has none", cure=SET_KEYS)]
    ending = f", a key that ends in {key.end}" if key.end else ""
    return [ok(CREDENTIALS, f"from {_PARTS.get(key.source, key.source)}{ending}")]


async def bucket(ground: CheckContext) -> list[Finding]:
    """A small object is put, read back, listed and deleted. The first three are enough: that it stays is no fault."""
    if not ground.settings.cloud_configured:
        return [skipped(BUCKET, SET_UP)]
    place = _place(ground)
    try:
        probed = await ground.examination.probe()
    except StoreError as why:
        return [wrong(BUCKET, why, cure="check akosha_cloud_bucket and akosha_cloud_endpoint")]
    if not probed.made:
        return [ok(BUCKET, f"{place} is made by the first upload")]
    if not probed.same:
        cure = "check what lies between here and there, and that nobody else writes to that key"
        return [error(BUCKET, f"{place}: what was put came back as something else", cure=cure)]
    if probed.kept is not None:
        return [ok(BUCKET, f"{place}: put, get and list work; delete is not permitted, and not needed")]
    return [ok(BUCKET, f"{place}: put, get, list and delete work")]


async def leftovers(ground: CheckContext) -> list[Finding]:
    if not ground.settings.cloud_configured:
        return [skipped(LEFTOVERS, NO_CLOUD)]
    try:
        found = await ground.examination.leftovers()
    except NotPermitted:
        return [ok(LEFTOVERS, "unfinished uploads may not be listed (s3:ListBucketMultipartUploads): nothing needs it")]
    if found.lost:
        return [warning(LEFTOVERS, f"{found.lost} uploads that were never finished take up room", cure=LIFECYCLE)]
    return [ok(LEFTOVERS, f"none; {found.young} may be under way" if found.young else "none")]


async def clock(ground: CheckContext) -> list[Finding]:
    """Compare with the clocks of those servers that answer."""
    found: list[Finding] = []
    if _no_s3(ground) is None:
        with suppress(StoreError):  # the bucket's own check says so
            found += _compared("the bucket's", await ground.examination.bucket_ahead())
    if HTTP in ground.settings.route:
        with suppress(SinkError):  # as above
            found += _compared("Akosha's", await ground.examination.akosha_ahead())
    return found or [skipped(CLOCK, "no server reports its time")]


async def akosha(ground: CheckContext) -> list[Finding]:
    """Where everything goes to Akosha, one that is out of reach is an error; where it only stands in, a warning."""
    if HTTP not in ground.settings.route:
        return [skipped(AKOSHA, "nothing goes there: akosha_force_method or akosha_enable_fallback say so")]
    first = ground.http_first
    try:
        reader = await ground.examination.akosha()
    except SinkError as why:
        cure = START_AKOSHA if first else f"{START_AKOSHA}; where there is none, set akosha_enable_fallback: false"
        found = [wrong(AKOSHA, why, cure=cure, level=Level.ERROR if first else Level.WARNING)]
        return found + await _given(ground)
    found = [ok(AKOSHA, f"{reader.place} takes memories, version {reader.version or 'unknown'}")]
    return found + await _given(ground)


async def _given(ground: CheckContext) -> list[Finding]:
    """Report what was given to the server, when it confirmed last that it has it, and what waits for an embedding."""
    given = await ground.examination.given_to_akosha()
    found = []
    if delivered := given.standing.delivered:
        asked = f"{CONFIRMED} (asked at {when(given.confirmed_at)})" if given.confirmed_at else "not asked yet for them"
        text = f"{delivered:,} memories delivered, {asked}; akosha-agent sync asks now"
        found.append(ok(AKOSHA_MEMORIES, text, detail=DELIVERED_TO_AKOSHA))
    if waiting := given.standing.waiting.get(NO_EMBEDDING, 0):
        found.append(warning(AKOSHA_MEMORIES, f"{waiting:,} memories wait for an embedding", cure=EMBEDDING_CURE))
    return found


def _compared(whose: str, ahead: float | None) -> list[Finding]:
    if ahead is None:
        return []
    off = abs(ahead)
    if off < WARN_SECONDS:
        return [ok(CLOCK, f"within {max(off, 1):.0f} s of {whose}")]
    told = f"this machine's clock is {off:.0f} s {'behind' if ahead > 0 else 'ahead of'} {whose}"
    cure = "set it by network time: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"
    return [error(CLOCK, told, cure=cure) if off >= REFUSED_SECONDS else warning(CLOCK, told, cure=cure)]


def _no_s3(ground: CheckContext) -> str | None:
    if not ground.settings.cloud_configured:
        return NO_CLOUD
    return "a directory needs none" if ground.settings.directory is not None else None


def _place(ground: CheckContext) -> str:
    s = ground.settings
    if s.directory is not None:
        return str(s.directory / s.cloud_bucket)
    return f"s3://{s.cloud_bucket} at {without_credentials(s.cloud_endpoint) or 'AWS'}"
