"""Creating an object on stores that support `If-None-Match` and on those that refuse or ignore it."""

import pytest

from agent.adapters.s3 import ObjectOptions
from agent.domain.errors import StoreError
from agent.ports import Creation
from tests.support.servers.faulty_proxy import refuse

pytest_plugins = ["tests.support.servers.fixtures"]

KEY = "systems/laptop/owner.json"


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


async def fetch(store):
    return b"".join([piece async for piece in store.get(KEY)])


@pytest.mark.parametrize("answer", [(501, "NotImplemented"), (400, "InvalidArgument")])
async def test_a_store_that_refuses_the_condition_gets_plain_puts(proxied, proxy, answer):
    store = proxied()
    proxy.on("put_object", refuse(*answer), times=1)
    assert await store.create(KEY, b"claim") is Creation.CREATED
    assert await fetch(store) == b"claim"
    assert "If-None-Match" in proxy.requests[proxy.seen.index("put_object")].headers
    assert [item.key async for item in store.list("")] == [KEY]
    assert await store.create(KEY, b"other") is Creation.EXISTS
    assert await fetch(store) == b"claim"


async def test_the_condition_detects_a_concurrent_create(proxied, proxy):
    store = proxied()
    other = proxied(bucket=store._address.bucket)

    async def overtaken(request, forward):
        await other._creator._put(KEY, b"theirs")
        return await forward()

    proxy.on("head_object", overtaken, times=1)
    assert await store.create(KEY, b"ours") is Creation.EXISTS
    assert await fetch(store) == b"theirs"
    assert [item.key async for item in store.list("")] == [KEY]


async def test_a_create_with_a_lost_response_reports_an_existing_object(proxied, proxy):
    async def lost(request, forward):
        if request.path.endswith(KEY):
            await forward()
            request.transport.close()
        return await forward()

    store = proxied()
    proxy.on("put_object", lost, times=3)
    assert await store.create(KEY, b"claim") is Creation.EXISTS, "the client's own retry was refused"
    assert await fetch(store) == b"claim"


async def test_a_conflict_with_another_create_is_transient(proxied, proxy):
    store = proxied()
    proxy.on("put_object", refuse(409, "ConditionalRequestConflict"), times=1)
    with pytest.raises(StoreError) as caught:
        await store.create(KEY, b"claim")
    assert caught.value.transient


async def test_a_create_needs_only_permission_for_put_get_and_list(proxied, proxy):
    store = proxied()
    for operation in ("delete_object", "delete_objects", "list_multipart_uploads", "abort_multipart_upload"):
        proxy.on(operation, refuse(403, "AccessDenied"))
    assert await store.create(KEY, b"claim") is Creation.CREATED
    assert await store.create(KEY, b"other", replace=True) is Creation.UNPROVEN
    assert await fetch(store) == b"other"
    assert set(proxy.seen) <= {"head_object", "put_object", "get_object", "delete_object"}
    await store.create("second.json", b"claim")
    assert await store.create("second.json", b"claim") is Creation.EXISTS, "what could not be deleted does no harm"


async def test_a_created_object_is_encrypted_and_in_the_default_storage_class(proxied):
    store = proxied(object_options=ObjectOptions(encryption="AES256", storage_class="GLACIER"))
    await store.create(KEY, b"claim")
    reported = await store._connection.call("head_object", KEY)
    assert reported["ServerSideEncryption"] == "AES256"
    assert not reported.get("StorageClass")
