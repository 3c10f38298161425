"""S3 that fails, gives wrong answers, stalls or refuses, with real requests through a proxy to moto."""

import asyncio
import random

import pytest
import structlog

from agent.adapters.s3 import S3Store
from agent.domain.errors import CopyUnsupported, NoSuchObject, NotPermitted, StoreError
from agent.ports import StoredObject
from tests.support.servers.faulty_proxy import answer_with, damage, lose_the_answer, refuse, reset, stall
from tests.support.servers.s3 import SECRET_KEY

pytest_plugins = ["tests.support.servers.fixtures"]

MIB = 2**20
PART = MIB // 2
KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
SINGLE = b"fits into one part" * 10_000
SEVERAL = random.Random(1).randbytes(3 * PART + 77)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Disable botocore's delay of up to a second before a retry."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


async def pieces_of(data):
    for start in range(0, len(data), 400_000):
        yield data[start : start + 400_000]


async def put(store, data, *, key=KEY, metadata=None, progress=lambda _: None):
    return await store.put(key, pieces_of(data), metadata=metadata or {}, part_bytes=PART, progress=progress)


async def fetch(store, key=KEY):
    return b"".join([piece async for piece in store.get(key)])


def bucket_of(store):
    return store._address.bucket


async def assert_nothing_left(store, proxy, moto):
    """Check on the server that there is no object and no multipart upload."""
    proxy.clear()
    assert [item async for item in store.list("")] == []
    assert moto.pending_uploads(bucket_of(store)) == 0


@pytest.mark.parametrize("operation", ["put_object", "upload_part", "create_multipart_upload"])
@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
async def test_a_request_is_tried_three_times(proxied, proxy, operation, status, code):
    """Two failures of a request are not reported, and each byte counts once for the progress."""
    store, moved = proxied(), []
    data = SINGLE if operation == "put_object" else SEVERAL
    proxy.on(operation, refuse(status, code), times=2)
    await put(store, data, progress=moved.append)
    assert sum(moved) == len(data)
    assert await fetch(store) == data


@pytest.mark.parametrize("operation", ["put_object", "upload_part", "create_multipart_upload"])
@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (503, "")])
async def test_a_server_that_keeps_failing_is_transient(proxied, proxy, moto, operation, status, code):
    store = proxied()
    proxy.on(operation, refuse(status, code))
    with pytest.raises(StoreError) as failure:
        await put(store, SINGLE if operation == "put_object" else SEVERAL)
    assert failure.value.transient
    assert str(status) in str(failure.value)
    await assert_nothing_left(store, proxy, moto)


@pytest.mark.parametrize(
    ("status", "code", "fix"),
    [
        (403, "AccessDenied", "s3:PutObject"),
        (403, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (403, "RequestTimeTooSkewed", "clock"),
        (404, "NoSuchBucket", "akosha_cloud_bucket"),
        (301, "PermanentRedirect", "akosha_cloud_region to eu-central-1"),
        (400, "AuthorizationHeaderMalformed", "akosha_cloud_region to eu-central-1"),
        (507, "QuotaExceeded", "make room"),
        (403, "InvalidObjectState", "akosha_cloud_storage_class"),
    ],
)
@pytest.mark.parametrize("data", [SINGLE, SEVERAL], ids=["single", "several"])
async def test_a_refusal_is_permanent_and_names_the_fix(proxied, proxy, moto, status, code, fix, data):
    store = proxied()
    operation = "put_object" if data is SINGLE else "create_multipart_upload"
    proxy.on(operation, refuse(status, code, secret=SECRET_KEY, headers={"x-amz-bucket-region": "eu-central-1"}))
    with pytest.raises(StoreError) as failure:
        await put(store, data)
    text = f"{failure.value!s} {failure.value!r}"
    assert not failure.value.transient
    assert fix in text
    assert isinstance(failure.value, NotPermitted) == (code == "AccessDenied")
    assert SECRET_KEY not in text
    await assert_nothing_left(store, proxy, moto)


@pytest.mark.parametrize("operation", ["put_object", "upload_part"])
@pytest.mark.parametrize("after", [0, 100_000])
async def test_a_broken_connection_is_retried_and_then_transient(proxied, proxy, moto, operation, after):
    store = proxied()
    data = SINGLE if operation == "put_object" else SEVERAL
    proxy.on(operation, reset(after=after), times=1)
    await put(store, data)
    assert await fetch(store) == data
    proxy.on(operation, reset(after=after))
    with pytest.raises(StoreError) as failure:
        await put(store, data, key="other")
    assert failure.value.transient
    proxy.clear()
    assert [item.key async for item in store.list("")] == [KEY]
    assert moto.pending_uploads(bucket_of(store)) == 0


@pytest.mark.parametrize(
    "operation", ["put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"]
)
async def test_a_cancelled_stall_ends_at_once_and_leaves_nothing(proxied, proxy, moto, operation, monkeypatch):
    # Only if the creation of the upload gets no response does the abort wait this long.
    monkeypatch.setattr("agent.adapters.s3.multipart.ABORT_SECONDS", 3)
    store, reached, moved = proxied(), asyncio.Event(), []
    at = 100_000 if operation in ("put_object", "upload_part") else 0
    proxy.on(operation, stall(reached, at=at))
    data = SINGLE if operation == "put_object" else SEVERAL
    task = asyncio.create_task(put(store, data, progress=moved.append))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(60):
            await task
    await assert_nothing_left(store, proxy, moto)


async def test_progress_is_reported_within_a_part(proxied, proxy):
    """On a slow connection, progress is reported long before a part is complete."""
    store, reached, moved = proxied(), asyncio.Event(), []
    proxy.on("upload_part", stall(reached, at=PART * 3 // 4))
    task = asyncio.create_task(put(store, SEVERAL, progress=moved.append))
    await asyncio.wait_for(reached.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sum(moved) >= PART // 2
    assert max(moved) <= 128 * 1024


class Slowly:
    """A rate limiter that waits the given seconds for each slice."""

    piece_bytes = 64 * 1024

    def __init__(self, seconds):
        self.seconds, self.taken = seconds, 0

    async def take(self, count, held_back):
        held_back()
        await asyncio.sleep(self.seconds)
        self.taken += count


@pytest.mark.parametrize("server", ["moto", "rclone"])
async def test_the_read_timeout_does_not_limit_the_body(request, server, aws):
    """Only the time after the last byte counts."""
    server = request.getfixturevalue(server)
    rate_limiter = Slowly(0.3)
    store = S3Store(
        bucket=server.new_bucket(), endpoint=server.endpoint, region="auto", read_timeout=2, rate_limiter=rate_limiter
    )
    data = random.Random(3).randbytes(PART)
    await put(store, data)
    assert rate_limiter.taken == len(data), "not sent twice"
    assert await fetch(store) == data
    await store.aclose()


async def test_a_missing_response_after_the_body_is_transient(proxied, proxy):
    store, reached = proxied(read_timeout=0.5), asyncio.Event()
    proxy.on("put_object", stall(reached, at=len(SINGLE)))
    with pytest.raises(StoreError, match="did not answer in time") as failure:
        await put(store, SINGLE)
    assert failure.value.transient
    assert reached.is_set()


@pytest.mark.parametrize(
    ("operation", "limit"), [("copy_object", {}), ("upload_part_copy", {"single_copy_bytes": PART})]
)
async def test_a_copy_may_take_longer_than_the_read_timeout(proxied, proxy, operation, limit):
    """A store that copies bytes one by one answers after the last of them. The caller limits the time."""
    store = proxied(read_timeout=0.5, **limit)
    source = await put(store, SEVERAL)

    async def slow(_request, forward):
        answer = await forward()
        await asyncio.sleep(1)
        return answer

    proxy.on(operation, slow, times=1)
    await store.copy(KEY, "copy", expected=source)
    assert await fetch(store, "copy") == SEVERAL
    assert proxy.count(operation) == (4 if limit else 1)


async def test_bytes_of_a_retry_are_rate_limited(proxied, proxy):
    rate_limiter, moved = Slowly(0), []
    proxy.on("put_object", refuse(503, "SlowDown"), times=1)
    await put(proxied(rate_limiter=rate_limiter), SINGLE, progress=moved.append)
    assert (rate_limiter.taken, sum(moved)) == (2 * len(SINGLE), len(SINGLE))


async def test_an_upload_cancelled_while_it_is_created_is_aborted(proxied, proxy, moto):
    """The store has created it and its response is pending: the client waits for the ID and aborts the upload."""
    store, reached, release = proxied(), asyncio.Event(), asyncio.Event()

    async def slow_answer(_request, forward):
        answer = await forward()
        reached.set()
        await release.wait()
        return answer

    proxy.on("create_multipart_upload", slow_answer)
    task = asyncio.create_task(put(store, SEVERAL))
    await asyncio.wait_for(reached.wait(), 30)
    assert moto.pending_uploads(bucket_of(store)) == 1
    task.cancel()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_nothing_left(store, proxy, moto)


@pytest.mark.parametrize("data", [SINGLE, SEVERAL], ids=["single", "several"])
async def test_bytes_that_change_in_transit_are_detected(proxied, proxy, moto, data):
    """moto accepts wrong checksums: the ETag in its response shows the damage."""
    store = proxied()
    proxy.on("put_object" if data is SINGLE else "upload_part", damage())
    with pytest.raises(StoreError, match="damaged") as failure:
        await put(store, data)
    assert failure.value.transient
    await assert_nothing_left(store, proxy, moto)


@pytest.mark.parametrize("data", [SINGLE, SEVERAL], ids=["single", "several"])
async def test_a_wrong_etag_is_damage(proxied, proxy, moto, data):
    store = proxied()
    proxy.on("put_object" if data is SINGLE else "upload_part", answer_with(headers={"ETag": '"' + "0" * 32 + '"'}))
    with pytest.raises(StoreError, match="damaged") as failure:
        await put(store, data)
    assert failure.value.transient
    await assert_nothing_left(store, proxy, moto)


async def test_an_etag_of_a_kms_encrypted_object_is_not_compared(proxied, proxy):
    """With a KMS key the ETag looks like an MD5 but is not one: the size is checked instead."""
    store = proxied()
    kms = {"ETag": '"' + "0" * 32 + '"', "x-amz-server-side-encryption": "aws:kms"}
    for operation in ("put_object", "upload_part"):
        proxy.on(operation, answer_with(headers=kms))
    proxy.on("complete_multipart_upload", _accept_any_parts)
    await put(store, SINGLE)
    assert proxy.count("head_object") == 1
    assert await fetch(store) == SINGLE


async def _accept_any_parts(_request, forward):
    return await forward()


async def test_a_store_with_other_multipart_etags_is_read_back_once(proxied, proxy):
    """Such an ETag means damage or another format: the bytes are read back once to decide."""
    store = proxied()
    proxy.on("complete_multipart_upload", _other_form)
    with structlog.testing.capture_logs() as logs:
        await put(store, SEVERAL)
        await put(store, SEVERAL, key="second")
    assert proxy.count("get_object") == 1
    assert [entry["event"] for entry in logs] == ["etags_not_md5"]


async def test_a_completed_object_that_differs_from_its_parts_is_damage(proxied, proxy, moto):
    store = proxied()
    proxy.on("complete_multipart_upload", _other_form)
    proxy.on("get_object", _spoiled)
    with pytest.raises(StoreError, match="read back differs from what was sent") as failure:
        await put(store, SEVERAL)
    assert failure.value.transient
    await assert_nothing_left(store, proxy, moto)


async def _other_form(_request, forward):
    answer = await forward()
    head, _, tail = answer.text.partition("<ETag>")
    answer.text = head + "<ETag>&quot;" + "0" * 32 + "-4&quot;</ETag>" + tail.partition("</ETag>")[2]
    return answer


async def _spoiled(_request, forward):
    answer = await forward()
    answer.body = bytes([answer.body[0] ^ 1]) + answer.body[1:]
    return answer


async def test_a_completed_object_of_another_size_is_damage(proxied, proxy, moto):
    store = proxied()
    proxy.on("head_object", answer_with(headers={"Content-Length": "5"}))
    with pytest.raises(StoreError, match=r"damaged .* 5 of") as failure:
        await put(store, SEVERAL)
    assert failure.value.transient
    await assert_nothing_left(store, proxy, moto)


async def test_an_error_in_a_200_response_is_an_error(proxied, proxy, moto):
    store = proxied()
    proxy.on("complete_multipart_upload", refuse(200, "InternalError"))
    with pytest.raises(StoreError) as failure:
        await put(store, SEVERAL)
    assert failure.value.transient
    assert proxy.count("complete_multipart_upload") == 3
    await assert_nothing_left(store, proxy, moto)


async def test_a_completion_whose_response_is_lost_is_recognised(proxied, proxy, moto):
    """The first attempt succeeded, so the second gets NoSuchUpload: the object exists and is correct."""
    store = proxied()
    proxy.on("complete_multipart_upload", lose_the_answer(), times=1)
    proxy.on("complete_multipart_upload", refuse(404, "NoSuchUpload"))
    assert (await put(store, SEVERAL)).size == len(SEVERAL)
    assert await fetch(store) == SEVERAL
    assert proxy.count("complete_multipart_upload") == 2
    assert moto.pending_uploads(bucket_of(store)) == 0


async def test_a_foreign_abort_of_the_upload_is_transient(proxied, proxy, moto):
    store = proxied()
    proxy.on("complete_multipart_upload", refuse(404, "NoSuchUpload"))
    with pytest.raises(StoreError, match="NoSuchUpload") as failure:
        await put(store, SEVERAL)
    assert failure.value.transient
    await assert_nothing_left(store, proxy, moto)


@pytest.fixture
def least_privilege(proxy):
    """Only Put, Get and List are allowed; a HEAD of a missing object is a 404."""
    for operation in ("abort_multipart_upload", "delete_object", "list_multipart_uploads"):
        proxy.on(operation, refuse(403, "AccessDenied"))


async def test_put_get_and_list_permissions_suffice(proxied, least_privilege):
    store = proxied()
    for key, data in (("small", SINGLE), ("large", SEVERAL)):
        source = await put(store, data, key=key, metadata={"sha256": "ab"})
        await store.copy(key, f"{key}-copy", expected=source)
        assert await fetch(store, f"{key}-copy") == data
    assert len([item async for item in store.list("")]) == 4


async def test_other_operations_name_the_missing_permission(proxied, least_privilege):
    store = proxied()
    with pytest.raises(NotPermitted, match="s3:DeleteObject"):
        await store.delete(["x"])
    with pytest.raises(NotPermitted, match="s3:ListBucketMultipartUploads"):
        await store.sweep("systems/")


async def test_parts_that_cannot_be_aborted_are_logged_with_a_hint(proxied, proxy, least_privilege):
    """The raised error is the one of the upload."""
    store = proxied()
    proxy.on("upload_part", refuse(403, "InvalidAccessKeyId"))
    with structlog.testing.capture_logs() as logs, pytest.raises(StoreError, match="InvalidAccessKeyId"):
        await put(store, SEVERAL)
    (notice,) = [line for line in logs if line["event"] != "s3_client_discarded"]
    assert (notice["event"], notice["log_level"]) == ("parts_not_removed", "info")
    assert "lifecycle rule" in notice["hint"]


async def test_a_denied_head_of_a_missing_key_names_the_permission(proxied, proxy):
    store = proxied()
    proxy.on("head_object", refuse(403, "AccessDenied"))
    with pytest.raises(NotPermitted, match="s3:ListBucket"):
        await store.head("missing")


async def test_sweep_aborts_only_uploads_of_killed_processes(proxied, proxy, moto):
    store, reached = proxied(), asyncio.Event()
    for key in ("systems/mac/a", "systems/mac/b", "systems/pc/a"):
        await store._connection.call("create_multipart_upload", key)
    proxy.on("upload_part", stall(reached))
    task = asyncio.create_task(put(store, SEVERAL, key="systems/mac/running"))
    await asyncio.wait_for(reached.wait(), 30)
    assert await store.sweep("systems/mac/") == 2
    assert moto.pending_uploads(bucket_of(store)) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert moto.pending_uploads(bucket_of(store)) == 1


async def test_a_store_that_cannot_list_uploads_has_none_to_sweep(proxied, proxy):
    proxy.on("list_multipart_uploads", refuse(501, "NotImplemented"))
    assert await proxied().sweep("systems/") == 0


async def test_a_listing_reads_all_pages(proxied, proxy):
    store = proxied()
    names = [f"systems/{n:02}" for n in range(7)]
    for name in names:
        await put(store, b"x", key=name)

    async def two_at_a_time(_request, forward):
        return await forward(query={"max-keys": "2"})

    proxy.on("list_objects_v2", two_at_a_time)
    assert [item.key async for item in store.list("systems/")] == names
    assert proxy.count("list_objects_v2") == 4


async def test_a_large_object_is_copied_in_ranges(proxied, proxy):
    """The size limit of a single copy, 5 GiB on AWS, is lowered to a part."""
    store = proxied(single_copy_bytes=PART)
    source = await put(store, SEVERAL, metadata={"sha256": "ab"})
    copied = await store.copy(KEY, "copy", expected=source)
    assert (copied.size, copied.metadata) == (len(SEVERAL), {"sha256": "ab"})
    assert await fetch(store, "copy") == SEVERAL
    assert (proxy.count("upload_part_copy"), proxy.count("copy_object")) == (4, 0)


async def test_an_empty_response_to_a_copied_range_is_rejected(proxied, proxy, moto):
    """rclone responds like this."""
    store = proxied(single_copy_bytes=PART)
    source = await put(store, SEVERAL)
    proxy.on("upload_part_copy", answer_with(empty=True))
    with pytest.raises(CopyUnsupported):
        await store.copy(KEY, "copy", expected=source)
    proxy.clear()
    assert [item.key async for item in store.list("")] == [KEY]
    assert moto.pending_uploads(bucket_of(store)) == 0


async def test_an_incorrect_copy_is_rejected_and_removed(proxied, proxy):
    store = proxied()
    source = await put(store, SINGLE, metadata={"sha256": "ab"})

    async def wrong_metadata(request, forward):
        return await forward(headers={next(n for n in request.headers if n.lower() == "x-amz-meta-sha256"): "cd"})

    proxy.on("copy_object", wrong_metadata)
    with pytest.raises(CopyUnsupported, match="is incorrect"):
        await store.copy(KEY, "copy", expected=source)
    assert [item.key async for item in store.list("")] == [KEY]


async def test_a_copy_with_other_bytes_is_rejected_and_removed(proxied, proxy):
    """Its size and metadata are right: the metadata is that of the request."""
    store = proxied()
    source = await put(store, SINGLE, metadata={"sha256": "ab"})

    async def other_bytes(_request, forward):
        answer = await forward()
        await put(store, bytes([SINGLE[0] ^ 1]) + SINGLE[1:], key="copy", metadata={"sha256": "ab"})
        return answer

    proxy.on("copy_object", other_bytes)
    with pytest.raises(CopyUnsupported, match="other bytes"):
        await store.copy(KEY, "copy", expected=source)
    assert [item.key async for item in store.list("")] == [KEY]


async def test_other_bytes_in_the_first_copy_of_an_object_in_parts_are_found_only_by_reading(proxied, proxy):
    """Its ETag is no MD5. That of a copy is one, so the next copy is compared."""
    store = proxied()
    source = await put(store, SEVERAL, metadata={"sha256": "ab"})

    async def other_bytes(request, forward):
        answer = await forward()
        key = request.path.rpartition("/")[2]
        data = bytes([SEVERAL[0] ^ 1]) + SEVERAL[1:]
        await store._connection.call("put_object", key, Body=data, Metadata={"sha256": "ab"})
        return answer

    proxy.on("copy_object", other_bytes, times=1)
    await store.copy(KEY, "first", expected=source)
    assert await fetch(store, "first") != SEVERAL
    copied = await store.copy(KEY, "second", expected=source)
    proxy.on("copy_object", other_bytes, times=1)
    with pytest.raises(CopyUnsupported, match="other bytes"):
        await store.copy("second", "third", expected=copied)


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (403, "AccessDenied"), (400, "InvalidRequest")])
async def test_a_store_that_refuses_to_copy_raises_copy_unsupported(proxied, proxy, status, code):
    store = proxied()
    source = await put(store, SINGLE)
    proxy.on("copy_object", refuse(status, code))
    with pytest.raises(CopyUnsupported, match=code):
        await store.copy(KEY, "copy", expected=source)


@pytest.mark.parametrize(("status", "code", "transient"), [(503, "SlowDown", True), (403, "ExpiredToken", False)])
async def test_an_error_that_sending_would_meet_too_is_not_copy_unsupported(proxied, proxy, status, code, transient):
    store = proxied()
    source = await put(store, SINGLE)
    proxy.on("copy_object", refuse(status, code))
    with pytest.raises(StoreError, match=code) as failure:
        await store.copy(KEY, "copy", expected=source)
    assert not isinstance(failure.value, CopyUnsupported)
    assert failure.value.transient is transient


async def test_a_truncated_download_is_transient(proxied, proxy):
    store = proxied()
    await put(store, SINGLE)

    async def cut(request, forward):
        answer = await forward()
        half = answer.body[: len(answer.body) // 2]
        request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer.body) + half)
        request.transport.close()
        return answer

    proxy.on("get_object", cut)
    with pytest.raises(StoreError) as failure:
        await fetch(store)
    assert failure.value.transient


@pytest.mark.parametrize("data", [SINGLE, SEVERAL], ids=["single", "several"])
async def test_no_redirect_is_followed(proxied, proxy, data):
    """A response must not choose the address, and a POST must not become a GET."""
    store = proxied()
    for operation in ("put_object", "create_multipart_upload"):
        proxy.on(operation, refuse(301, "PermanentRedirect", headers={"Location": f"{proxy.url}/elsewhere"}))
    with pytest.raises(StoreError, match="akosha_cloud_region") as failure:
        await put(store, data)
    assert not failure.value.transient
    assert not [request.path for request in proxy.requests if "elsewhere" in request.path]


async def test_a_missing_bucket_is_a_permanent_error(moto, aws):
    store = S3Store(bucket="never-made", endpoint=moto.endpoint, region="auto")
    with pytest.raises(StoreError, match="akosha_cloud_bucket") as failure:
        await put(store, SINGLE)
    assert not failure.value.transient
    assert not isinstance(failure.value, NoSuchObject)
    await store.aclose()


async def test_copying_a_missing_object_raises_no_such_object(proxied):
    with pytest.raises(NoSuchObject):
        await proxied().copy("missing", "copy", expected=StoredObject("missing", 1, {}))
