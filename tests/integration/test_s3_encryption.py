"""Encryption and storage class: their headers are sent with every request that creates an object, if they are set."""

import random

import pytest
import structlog

from agent.adapters.s3 import ObjectOptions, S3Store
from agent.bootstrap.stores import object_store
from agent.domain.errors import CopyUnsupported, NotPermitted, StoreError
from agent.settings import Settings
from tests.support.servers.faulty_proxy import refuse

pytest_plugins = ["tests.support.servers.fixtures"]

MIB = 2**20
PART = MIB // 2
SMALL = b"one part" * 1000
LARGE = random.Random(2).randbytes(2 * PART + 77)
KEY_ID = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd"
OPTIONS = {
    "AES256": ObjectOptions(encryption="AES256"),
    "kms": ObjectOptions(encryption="aws:kms"),
    "kms-key-class": ObjectOptions(encryption="aws:kms", kms_key_id=KEY_ID, storage_class="STANDARD_IA"),
    "class": ObjectOptions(storage_class="STANDARD_IA"),
}
CREATING = {"put_object", "copy_object", "create_multipart_upload"}


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


async def put(store, key, data=SMALL):
    async def body():
        yield data

    return await store.put(key, body(), metadata={"sha256": "ab"}, part_bytes=PART, progress=lambda _: None)


async def stored_options(store, key):
    """Return encryption and storage class of an object as the server reports them."""
    reported = await store._connection.call("head_object", key)
    return ObjectOptions(
        encryption=reported.get("ServerSideEncryption", ""),
        kms_key_id=reported.get("SSEKMSKeyId", ""),
        storage_class=reported.get("StorageClass", ""),
    )


async def put_and_copy(store):
    """Put a small object and one in parts, and copy both; return the keys."""
    for key, data in (("small", SMALL), ("large", LARGE)):
        source = await put(store, key, data)
        assert (await store.copy(key, f"{key}-copy", expected=source)).size == len(data)
    return "small", "large", "small-copy", "large-copy"


@pytest.mark.parametrize("wanted", OPTIONS.values(), ids=OPTIONS)
async def test_every_request_that_creates_an_object_has_the_headers_and_parts_do_not(proxied, proxy, wanted):
    store = proxied(object_options=wanted, single_copy_bytes=PART)
    with structlog.testing.capture_logs() as logs:
        keys = await put_and_copy(store)
    assert logs == []
    expected = dict.fromkeys(keys, wanted)
    assert {key: await stored_options(store, key) for key in keys} == expected
    for operation, request in zip(proxy.seen, proxy.requests, strict=True):
        names = {name.lower() for name in request.headers}
        asked = {name for name in names if "encryption" in name or name == "x-amz-storage-class"}
        assert bool(asked) == (operation in CREATING), (operation, asked)
    assert set(proxy.seen) >= CREATING | {"upload_part", "upload_part_copy"}


async def test_a_copy_is_encrypted_independently_of_its_source(proxied):
    plain = proxied()
    source = await put(plain, "plain")
    assert await stored_options(plain, "plain") == ObjectOptions()
    encrypting = proxied(bucket=plain._address.bucket, object_options=OPTIONS["kms-key-class"])
    await encrypting.copy("plain", "copy", expected=source)
    assert await stored_options(encrypting, "copy") == OPTIONS["kms-key-class"]
    await plain.copy("copy", "plain-again", expected=source)
    assert await stored_options(plain, "plain-again") == ObjectOptions()


@pytest.mark.parametrize("server", ["moto", "rclone"])
async def test_without_a_setting_no_header_is_sent(request, server, aws):
    """R2 and B2 refuse unknown headers."""
    server = request.getfixturevalue(server)
    store = object_store(Settings(cloud_bucket=server.new_bucket(), cloud_endpoint=server.endpoint))
    seen = set()
    client = (await store._connection._client()).raw
    client.meta.events.register("before-send.s3", lambda request, **_: seen.update(map(str.lower, request.headers)))
    await put(store, "small")
    await put(store, "large", LARGE)
    await store.aclose()
    assert "content-md5" in seen
    assert not [name for name in seen if "encryption" in name or "storage-class" in name]


async def test_the_settings_choose_encryption_and_storage_class(moto, aws):
    store = object_store(
        Settings(
            cloud_bucket=moto.new_bucket(),
            cloud_endpoint=moto.endpoint,
            cloud_sse="aws:kms",
            cloud_sse_kms_key_id=KEY_ID,
            cloud_storage_class="standard_ia",
        )
    )
    await put(store, "systems/mac/uploads/x/manifest.json")
    assert await stored_options(store, "systems/mac/uploads/x/manifest.json") == OPTIONS["kms-key-class"]
    await store.aclose()


async def test_a_store_that_does_not_confirm_encryption_causes_one_warning(rclone, aws):
    """rclone accepts the header and ignores it."""
    store = S3Store(
        bucket=rclone.new_bucket(), endpoint=rclone.endpoint, region="auto", object_options=OPTIONS["AES256"]
    )
    with structlog.testing.capture_logs() as logs:
        await put(store, "small")
        await put(store, "large", LARGE)
    await store.aclose()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("encryption_unconfirmed", "warning")]


REFUSALS = {
    "kms-denied": (403, "AccessDenied", "not authorized to perform: kms:GenerateDataKey on resource", "kms-key-class",
                   ("kms:GenerateDataKey", "akosha_cloud_sse and akosha_cloud_sse_kms_key_id")),
    "denied": (403, "AccessDenied", "Denied", "kms", ("s3:PutObject", "kms:GenerateDataKey", "akosha_cloud_sse")),
    "no-key": (400, "KMS.NotFoundException", "Invalid keyId", "kms-key-class", ("akosha_cloud_sse_kms_key_id",)),
    "key-disabled": (400, "KMS.DisabledException", "is disabled", "kms-key-class", ("akosha_cloud_sse_kms_key_id",)),
    "no-class": (400, "InvalidStorageClass", "is not valid", "class", ("akosha_cloud_storage_class",)),
    "no-sse": (501, "NotImplemented", "Header 'x-amz-server-side-encryption' not implemented", "kms-key-class",
               ("akosha_cloud_sse",)),
    "no-class-header": (501, "NotImplemented", "Header 'x-amz-storage-class' not implemented", "kms-key-class",
                        ("akosha_cloud_storage_class",)),
    "no-word": (400, "InvalidArgument", "no", "kms-key-class", ("akosha_cloud_sse ", "akosha_cloud_storage_class")),
    "minio": (400, "InvalidRequest", "Server side encryption specified but KMS is not configured", "AES256",
              ("akosha_cloud_sse",)),
}  # fmt: skip


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(("status", "code", "text", "option", "named"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_is_permanent_and_names_the_setting(proxied, proxy, status, code, text, option, named, data):
    store = proxied(object_options=OPTIONS[option])
    proxy.on("put_object" if data is SMALL else "create_multipart_upload", refuse(status, code, secret=text))
    with pytest.raises(StoreError) as failure:
        await put(store, "key", data)
    error = failure.value
    assert not error.transient
    assert code in error.message
    for name in named:
        assert name in f"{error.hint} ", (name, error.hint)
    assert isinstance(error, NotPermitted) == (code == "AccessDenied")
    assert [item async for item in store.list("")] == []


async def test_a_throttled_key_service_is_a_transient_error(proxied, proxy):
    proxy.on("put_object", refuse(400, "KMS.ThrottlingException"))
    with pytest.raises(StoreError, match="KMS") as failure:
        await put(proxied(object_options=OPTIONS["kms"]), "key")
    assert failure.value.transient


async def test_a_read_without_permission_for_the_key_names_it(proxied, proxy):
    """This includes a bucket that encrypts by default, without a setting."""
    store = proxied()
    proxy.on("get_object", refuse(403, "AccessDenied", secret="not authorized to perform: kms:Decrypt"))
    with pytest.raises(NotPermitted, match="kms:Decrypt on the KMS key"):
        await anext(store.get("key"))


@pytest.mark.parametrize("status", [400, 501])
async def test_without_a_setting_the_error_names_none(proxied, proxy, status):
    proxy.on("put_object", refuse(status, "NotImplemented"))
    with pytest.raises(StoreError) as failure:
        await put(proxied(), "key")
    assert "akosha_cloud" not in failure.value.hint


async def test_a_refused_copy_is_reported_as_unsupported(proxied, proxy):
    """The upload then sends the object instead. If the setting is the cause, the error of that put names it."""
    store = proxied(object_options=OPTIONS["kms"])
    source = await put(store, "source")
    proxy.on("copy_object", refuse(400, "KMS.NotFoundException"))
    with pytest.raises(CopyUnsupported):
        await store.copy("source", "copy", expected=source)
