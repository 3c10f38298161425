"""What botocore reads for each client, read once for a process: its models, and one CA certificate in place of many."""

import functools
from pathlib import Path

import botocore.httpsession
import botocore.loaders
import botocore.session

UNKNOWN_CA = Path(__file__).parent / "data" / "unknown_ca.pem"
"""The certificate of a CA whose key was thrown away: no server has one of it."""


def share() -> None:
    """Let the clients of this process, and of those forked from it, share them."""
    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)
    botocore.httpsession.where = lambda: str(UNKNOWN_CA)
    botocore.session.Session().create_client(
        "s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
