"""The rule by which a bucket deletes old uploads itself: for credentials that may not delete.

It counts days alone. So it keeps everything for as long as the rules of keeping reach back, and cannot keep the last
upload of a system that has had nothing new for longer than that.
"""

import json

from agent.domain.naming import check_system_id, uploads_prefix
from agent.domain.retention import KeepRules

LEAST_DAYS = 92


def days_kept(rules: KeepRules) -> int:
    """Return for how many days such a rule keeps an upload."""
    return max(LEAST_DAYS, rules.daily + 1, 7 * (rules.weekly + 1), 31 * (rules.monthly + 1))


def s3_rule(system_id: str, rules: KeepRules) -> str:
    """Return the lifecycle configuration of S3 and its relatives, JSON in one line."""
    rule = {
        "ID": f"akosha-agent-{check_system_id(system_id)}",
        "Status": "Enabled",
        "Filter": {"Prefix": uploads_prefix(system_id)},
        "Expiration": {"Days": days_kept(rules)},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 2},
    }
    return json.dumps({"Rules": [rule]})


def r2_command(bucket: str, system_id: str, rules: KeepRules) -> str:
    """Return the command that makes the same rule on Cloudflare R2."""
    return (
        f"npx wrangler r2 bucket lifecycle add {bucket} akosha-agent-{check_system_id(system_id)}"
        f" {uploads_prefix(system_id)} --expire-days {days_kept(rules)} --abort-multipart-days 2"
    )
