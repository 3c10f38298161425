"""Caches what botocore reads for each client: its models, and one CA certificate instead of the usual bundle."""

import functools
from pathlib import Path

UNKNOWN_CA = Path(__file__).parent / "data" / "unknown_ca.pem"
"""The certificate of a CA whose key was deleted: no server has a certificate of it."""


def share() -> None:
    """Share the cached data between the clients of this process and of processes forked from it."""
    import botocore.httpsession
    import botocore.loaders
    import botocore.session

    botocore.session.create_loader = functools.cache(botocore.loaders.create_loader)
    botocore.httpsession.where = lambda: str(UNKNOWN_CA)
    botocore.session.Session().create_client(
        "s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )
