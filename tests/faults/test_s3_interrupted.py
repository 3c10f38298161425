"""Interrupted multipart uploads that a later put continues, or cannot continue, with a proxy before moto."""

import asyncio
import contextlib
import random
import re

import pytest
import structlog

from agent.adapters.s3 import ObjectOptions, S3Store
from agent.adapters.s3.multipart import MOST_UNLISTED
from agent.domain.errors import StoreError
from tests.support.put_journal import MemoryJournal
from tests.support.servers.faulty_proxy import answer_with, damage, lose_the_answer, refuse, reset

pytest_plugins = ["tests.support.servers.fixtures"]

PART = 2**19
KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
TAIL = 77
BODY = random.Random(1).randbytes(4 * PART + TAIL)
METADATA = {"sha256": "ab" * 32}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Disable botocore's delay of up to a second before a retry."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.fixture
def journal():
    return MemoryJournal(KEY)


async def pieces_of(data):
    for start in range(0, len(data), 400_000):
        yield data[start : start + 400_000]


async def put(store, journal, data=BODY):
    """Return the number of bytes sent."""
    moved = []
    await store.put(KEY, pieces_of(data), metadata=METADATA, part_bytes=PART, progress=moved.append, journal=journal)
    return sum(moved)


async def fetch(store):
    return b"".join([piece async for piece in store.get(KEY)])


def pending(store, moto):
    return moto.pending_uploads(store._address.bucket)


def failing_from(number, action):
    """Apply the action to this part and those after it."""

    async def chosen(request, forward):
        return await (action(request, forward) if int(request.query["partNumber"]) >= number else forward())

    return chosen


async def interrupt(store, proxy, journal, *, parts=2):
    """Cut the connection at each part after the first `parts`, which the store has then."""
    proxy.on("upload_part", failing_from(parts + 1, _cut_once_recorded(journal, parts)))
    with pytest.raises(StoreError) as failure:
        await put(store, journal)
    assert failure.value.transient
    assert journal.put is not None
    assert sorted(journal.put.parts) == [*range(1, parts + 1)]
    proxy.clear()
    proxy.seen.clear()


def _cut_once_recorded(journal, parts):
    async def action(request, forward):
        await journal.wait_for(parts)
        return await reset(after=0)(request, forward)

    return action


async def put_logged(store, journal, data=BODY):
    """Return the number of bytes sent, and the log lines."""
    with structlog.testing.capture_logs() as logs:
        sent = await put(store, journal, data)
    return sent, logs


async def test_after_a_cut_only_the_missing_parts_are_sent(proxied, proxy, moto, journal):
    store = proxied()
    await interrupt(store, proxy, journal)
    assert pending(store, moto) == 1
    sent, logs = await put_logged(store, journal)
    assert sent == len(BODY) - 2 * PART
    assert (proxy.count("create_multipart_upload"), proxy.count("upload_part")) == (0, 3)
    assert [(line["event"], line["count"], line["bytes"]) for line in logs] == [("put_resumed", 2, 2 * PART)]
    assert await fetch(store) == BODY
    assert pending(store, moto) == 0
    assert journal.put is None


async def test_a_part_that_the_store_has_is_not_sent_again_even_if_it_was_not_recorded(proxied, proxy, journal):
    """A kill between the store's answer and the record loses nothing: the ETag in the listing is the part's MD5."""
    store = proxied()
    await interrupt(store, proxy, journal)
    await journal.begin(journal.put.put_id, journal.put.parameters)
    assert await put(store, journal) == len(BODY) - 2 * PART
    assert await fetch(store) == BODY


async def test_a_part_that_the_store_lost_is_sent(proxied, proxy, moto, journal):
    store = proxied()
    await interrupt(store, proxy, journal)
    proxy.on("list_parts", _without_part(1))
    assert await put(store, journal) == len(BODY) - PART
    assert await fetch(store) == BODY


@pytest.mark.parametrize("change", ["stored", "body"])
async def test_a_part_that_differs_is_sent(proxied, proxy, moto, journal, change):
    store, body = proxied(), bytearray(BODY)
    if change == "body":
        await interrupt(store, proxy, journal)
        body[PART // 2] ^= 1
    else:  # another agent with a copy of this state directory has sent other bytes
        await interrupt(store, proxy, journal)
        other = bytes(PART)
        await store._connection.call(
            "upload_part", KEY, UploadId=journal.put.put_id, PartNumber=1, Body=other, ContentLength=len(other)
        )
    assert await put(store, journal, bytes(body)) == len(BODY) - PART
    assert await fetch(store) == bytes(body)
    assert pending(store, moto) == 0


async def test_a_shorter_body_gives_an_object_without_the_later_parts(proxied, proxy, moto, journal):
    store = proxied()
    await interrupt(store, proxy, journal, parts=4)
    body = BODY[: 2 * PART + 5]
    assert await put(store, journal, body) == 5
    assert await fetch(store) == body
    assert pending(store, moto) == 0


async def test_all_pages_of_the_parts_are_read(proxied, proxy, journal):
    async def two_at_a_time(_request, forward):
        return await forward(query={"max-parts": "2"})

    store = proxied()
    await interrupt(store, proxy, journal, parts=4)
    proxy.on("list_parts", two_at_a_time)
    assert await put(store, journal) == TAIL
    assert proxy.count("list_parts") == 2


async def test_etags_that_are_not_md5_count_if_the_store_gave_the_same_before(proxied, proxy, moto, journal):
    """With a KMS key, the ETag of a part says nothing about its bytes: the record says which bytes got it."""
    store = proxied()
    proxy.on("upload_part", _other_etags)
    proxy.on("list_parts", _other_etags)
    proxy.on("complete_multipart_upload", _original_etags)
    interrupted = asyncio.create_task(put(store, journal, BODY + bytes(PART)))
    await journal.wait_for(3)
    interrupted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    stored = len(journal.put.parts)
    sent, logs = await put_logged(store, journal, BODY + bytes(PART))
    assert [line["event"] for line in logs] == ["put_resumed"]
    assert sent == len(BODY) + PART - stored * PART
    assert await fetch(store) == BODY + bytes(PART)


UNLISTED = {
    "denied": refuse(403, "AccessDenied"),
    "unknown": refuse(404, "NoSuchUpload"),
    "ignored": refuse(404, "NoSuchKey"),
    "unsupported": refuse(501, "NotImplemented"),
    "not allowed": refuse(405, "MethodNotAllowed"),
    "failing": refuse(500, "InternalError"),
    "no XML": answer_with(empty=True),
    "a page": answer_with(replace=("<?xml", "<!doctype html><html><?xml")),
}


@pytest.mark.parametrize("why", [*UNLISTED, "no parts", "other etags"])
async def test_if_parts_cannot_be_listed_everything_is_sent_again_in_a_new_upload(proxied, proxy, moto, journal, why):
    store = proxied()
    await interrupt(store, proxy, journal)
    unlisted = {**UNLISTED, "no parts": _without_part(1, 2), "other etags": _other_etags}
    proxy.on("list_parts", unlisted[why])
    sent, logs = await put_logged(store, journal)
    assert sent == len(BODY)
    assert [line["event"] for line in logs] == ["parts_sent_again"]
    assert logs[0]["reason"]
    if why == "denied":
        assert "s3:ListMultipartUploadParts" in logs[0]["hint"]
    assert proxy.count("create_multipart_upload") == 1
    assert await fetch(store) == BODY
    assert pending(store, moto) == 0


async def test_parts_that_may_be_neither_listed_nor_removed_stay(proxied, proxy, moto, journal):
    store = proxied()
    await interrupt(store, proxy, journal)
    for operation in ("list_parts", "abort_multipart_upload"):
        proxy.on(operation, refuse(403, "AccessDenied"))
    sent, logs = await put_logged(store, journal)
    assert sent == len(BODY)
    assert [line["event"] for line in logs] == ["parts_sent_again", "parts_not_removed"]
    assert pending(store, moto) == 1


@pytest.mark.parametrize(
    "fault",
    [refuse(503, "SlowDown"), refuse(429, "TooManyRequests"), reset(after=0), refuse(403, "ExpiredToken")],
    ids=["busy", "rate limit", "cut", "expired token"],
)
async def test_a_store_that_does_not_answer_now_loses_no_parts(proxied, proxy, moto, journal, fault):
    """A refused key is found by the request that follows the listing: it is not a reason to send everything again."""
    store = proxied()
    await interrupt(store, proxy, journal)
    for operation in ("list_parts", "create_multipart_upload"):
        proxy.on(operation, fault)
    with structlog.testing.capture_logs() as logs, pytest.raises(StoreError):
        await put(store, journal)
    assert "parts_sent_again" not in [line["event"] for line in logs]
    proxy.clear()
    assert await put(store, journal) == len(BODY) - 2 * PART
    assert await fetch(store) == BODY
    assert pending(store, moto) == 0


@pytest.mark.parametrize("fault", [refuse(503, "SlowDown"), refuse(429, "TooManyRequests"), reset(after=0)])
async def test_a_store_that_never_lists_the_parts_gets_all_at_the_third_put(proxied, proxy, moto, journal, fault):
    store = proxied()
    await interrupt(store, proxy, journal)
    proxy.on("list_parts", fault)
    for _ in range(MOST_UNLISTED - 1):
        with pytest.raises(StoreError):
            await put(store, journal)
    sent, logs = await put_logged(store, journal)
    assert sent == len(BODY)
    assert [line["event"] for line in logs] == ["parts_sent_again"]
    assert await fetch(store) == BODY
    assert pending(store, moto) == 0


async def test_parts_outlast_any_number_of_puts_without_an_answer(proxied, proxy, moto, journal):
    store = proxied()
    await interrupt(store, proxy, journal)
    for operation in ("list_parts", "create_multipart_upload"):
        proxy.on(operation, refuse(503, "SlowDown"))
    for _ in range(MOST_UNLISTED + 1):
        with pytest.raises(StoreError):
            await put(store, journal)
    proxy.clear()
    assert await put(store, journal) == len(BODY) - 2 * PART


@pytest.mark.parametrize(
    ("fault", "kept"),
    [
        (refuse(500, "InternalError"), True),
        (refuse(503, "SlowDown"), True),
        (refuse(403, "ExpiredToken"), True),
        (lose_the_answer(), True),
        (refuse(403, "AccessDenied"), False),
        (refuse(507, "QuotaExceeded"), False),
        (refuse(404, "NoSuchUpload"), False),
        (damage(), False),
    ],
    ids=["failing", "busy", "expired token", "no answer", "denied", "quota", "unknown upload", "damaged"],
)
async def test_only_parts_that_are_worth_keeping_stay_after_a_failure(proxied, proxy, moto, journal, fault, kept):
    store = proxied()
    proxy.on("upload_part", failing_from(3, fault))
    with pytest.raises(StoreError):
        await put(store, journal)
    assert pending(store, moto) == (1 if kept else 0)
    assert (journal.put is not None) is kept
    proxy.clear()
    await put(store, journal)
    assert await fetch(store) == BODY
    assert pending(store, moto) == 0


async def test_a_completion_that_was_cut_is_completed_without_sending(proxied, proxy, moto, journal):
    store = proxied()
    proxy.on("complete_multipart_upload", reset(after=0))
    with pytest.raises(StoreError):
        await put(store, journal)
    proxy.clear()
    assert await put(store, journal) == 0
    assert await fetch(store) == BODY
    assert pending(store, moto) == 0


async def test_parts_that_the_store_does_not_accept_at_the_end_are_sent_anew(proxied, proxy, moto, journal):
    store = proxied()
    await interrupt(store, proxy, journal)
    proxy.on("complete_multipart_upload", refuse(400, "InvalidPart"))
    with pytest.raises(StoreError, match="InvalidPart") as failure:
        await put(store, journal)
    assert failure.value.transient
    assert pending(store, moto) == 0
    proxy.clear()
    assert await put(store, journal) == len(BODY)
    assert await fetch(store) == BODY


async def test_a_store_that_replaces_no_parts_gets_a_new_upload_at_the_next_try(rclone, aws, journal):
    """rclone answers 501 if a part is sent again with other bytes."""
    data = random.Random(2).randbytes(3 * 5 * 2**20)
    store = S3Store(bucket=rclone.new_bucket(), endpoint=rclone.endpoint, region="auto")
    async with contextlib.aclosing(store):
        await _interrupt_by_cancelling(store, journal, data)
        changed = bytearray(data)
        changed[0] ^= 1
        with pytest.raises(StoreError, match="NotImplemented") as failure:
            await _put_large(store, journal, bytes(changed))
        assert failure.value.transient
        assert rclone.pending_uploads(store._address.bucket) == 0
        assert await _put_large(store, journal, bytes(changed)) == len(data)
        assert await fetch(store) == bytes(changed)


async def _put_large(store, journal, data):
    moved = []
    await store.put(KEY, pieces_of(data), metadata={}, part_bytes=5 * 2**20, progress=moved.append, journal=journal)
    return sum(moved)


async def _interrupt_by_cancelling(store, journal, data):
    async def body():
        async for piece in pieces_of(data):
            yield piece
        await asyncio.Event().wait()

    task = asyncio.create_task(
        store.put(KEY, body(), metadata={}, part_bytes=5 * 2**20, progress=lambda _: None, journal=journal)
    )
    await journal.wait_for(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_encryption_or_storage_class_is_not_given_to_the_parts_of_the_earlier_put(
    proxied, proxy, moto, journal
):
    bucket = moto.new_bucket()
    await interrupt(proxied(bucket=bucket), proxy, journal)
    store = proxied(bucket=bucket, object_options=ObjectOptions(storage_class="STANDARD_IA"))
    sent, logs = await put_logged(store, journal)
    assert sent == len(BODY)
    assert "storage class" in logs[0]["reason"]
    found = await store._connection.call("head_object", KEY)
    assert found["StorageClass"] == "STANDARD_IA"
    assert moto.pending_uploads(bucket) == 0


async def test_a_put_whose_creation_cannot_be_recorded_leaves_no_upload(proxied, moto, journal):
    store = proxied()

    class DiskFullError(Exception):
        pass

    async def begin(*_):
        raise DiskFullError

    journal.begin = begin
    with pytest.raises(DiskFullError):
        await put(store, journal)
    assert pending(store, moto) == 0


def _without_part(*numbers):
    def kept(found):
        number = int(re.search("<PartNumber>([0-9]+)<", found[0])[1])
        return "" if number in numbers else found[0]

    async def action(_request, forward):
        answer = await forward()
        answer.text = re.sub("<Part>.*?</Part>", kept, answer.text, flags=re.DOTALL)
        return answer

    return action


_DIGITS = str.maketrans("0123456789abcdef", "123456789abcdef0")
_ORIGINAL = str.maketrans("123456789abcdef0", "0123456789abcdef")


async def _other_etags(_request, forward):
    """Answer with ETags that look like MD5s and are none, as with a KMS key."""
    answer = await forward()
    if "ETag" in answer.headers:
        answer.headers["ETag"] = answer.headers["ETag"].translate(_DIGITS)
        answer.headers["x-amz-server-side-encryption"] = "aws:kms"
    else:
        answer.text = _translated(answer.text, _DIGITS)
    return answer


async def _original_etags(request, forward):
    return await forward(body=_translated((await request.read()).decode(), _ORIGINAL).encode())


def _translated(text, digits):
    head, *rest = text.split("<ETag>")
    return "<ETag>".join([head, *(_translate(one, digits) for one in rest)])


def _translate(text, digits):
    etag, mark, tail = text.partition("</ETag>")
    bare = etag.replace("&quot;", "").strip('"')
    return f"&quot;{bare.translate(digits)}&quot;{mark}{tail}"
