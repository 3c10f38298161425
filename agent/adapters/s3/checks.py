"""Whether a store has what was sent: by the ETags it answers, where they are MD5s, and else by reading back."""

import hashlib
import re
from collections.abc import Sequence

from agent.adapters.s3.answers import Answer, etag_of
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.reading import read
from agent.domain.errors import StoreError

_MD5 = re.compile(r"[0-9a-f]{32}")
_MULTIPART = re.compile(r"[0-9a-f]{32}-[0-9]+")


def multipart_etag(md5s: Sequence[bytes]) -> str:
    """Return the ETag that AWS, R2, MinIO and rclone give an object put in parts: MD5 of the MD5s, and how many."""
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def says_md5(answer: Answer) -> bool:
    """Say whether the answer's ETag is the MD5 of what was stored: with a KMS or customer's key it is not."""
    encrypted = str(answer.get("ServerSideEncryption") or "").startswith("aws:kms")
    return not encrypted and not answer.get("SSECustomerAlgorithm") and bool(_MD5.fullmatch(etag_of(answer)))


def check_part(answer: Answer, md5: bytes, place: BucketAddress, key: str) -> bool:
    """Return whether the answer proves that the bytes arrived. Raises StoreError where it proves that they did not."""
    if not says_md5(answer):
        return False
    if etag_of(answer) != md5.hex():
        raise damaged(place, key, f"MD5 {etag_of(answer)} instead of {md5.hex()}")
    return True


def in_another_form(answer: Answer, md5s: Sequence[bytes]) -> bool:
    """Say whether the ETag of a whole looks like a digest of its parts, and is not the one that it should be."""
    return bool(_MULTIPART.fullmatch(etag_of(answer))) and etag_of(answer) != multipart_etag(md5s)


async def read_back(connection: Connection, key: str, md5s: Sequence[bytes], part_bytes: int) -> None:
    """Read the object and compare it with what was sent, part by part. Raises StoreError where it differs."""
    found = []
    digest, room = hashlib.md5(usedforsecurity=False), part_bytes
    async for piece in read(connection, key):
        rest = memoryview(piece)
        while len(rest) > room:
            digest.update(rest[:room])
            found.append(digest.digest())
            rest = rest[room:]
            digest, room = hashlib.md5(usedforsecurity=False), part_bytes
        digest.update(rest)
        room -= len(rest)
    found.append(digest.digest())
    if found != list(md5s):
        raise damaged(connection.place, key, "read back, it is not what was sent")


def check_size(found: int, sent: int, place: BucketAddress, key: str) -> None:
    """Raise StoreError where the store has another number of bytes than were sent."""
    if found != sent:
        raise damaged(place, key, f"{found} bytes of {sent}")


def damaged(place: BucketAddress, key: str, how: str) -> StoreError:
    """Return the error for an object or part that the store does not have as it was sent."""
    return StoreError(
        f"{key!r} arrived damaged in {place}: {how}", hint="check what lies between here and there", transient=True
    )
