"""What a batch of deletions is checked by on its way."""

import base64
import hashlib
from typing import Any


def sign_by_md5(request: Any, **_: object) -> None:
    """Check a batch by Content-MD5, before it is signed.

    The CRC that botocore puts in its place is unknown to older relatives of S3; MD5 is what all of them ask for.
    """
    headers: Any = request.headers
    for name in [name for name in headers if name.lower().startswith(("x-amz-checksum-", "x-amz-sdk-checksum-"))]:
        del headers[name]
    body = request.data if isinstance(request.data, bytes) else str(request.data).encode()
    headers["Content-MD5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
