"""The cause named in an error of S3Store: key, bucket, local file, proxy or AWS configuration."""

import asyncio
import contextlib

import pytest

from agent.adapters.s3 import S3Store
from agent.domain.errors import NoSuchObject, NotPermitted, StoreError
from tests.support.servers.faulty_proxy import refuse

pytest_plugins = ["tests.support.servers.fixtures"]


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@contextlib.asynccontextmanager
async def store_at(endpoint, bucket="bucket"):
    store = S3Store(bucket=bucket, endpoint=endpoint, region="auto")
    yield store
    await store.aclose()


async def head_fails(store):
    with pytest.raises(StoreError) as failure:
        await store.head("key")
    return failure.value


@contextlib.asynccontextmanager
async def proxy_that(answer):
    """A proxy that answers each request with these bytes or, if they are empty, opens the requested tunnel."""

    async def pump(reader, writer):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader, writer):
        asked = await reader.readuntil(b"\r\n\r\n")
        if answer:
            writer.write(answer)
            writer.close()
            return
        host, _, port = asked.split()[1].decode().rpartition(":")
        target_reader, target_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, target_writer), pump(target_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.mark.parametrize(
    ("head_status", "status", "code", "begins", "hint"),
    [
        (400, 400, "ExpiredToken", "expired token", "AWS_SESSION_TOKEN"),
        (403, 403, "InvalidAccessKeyId", "unknown access key", "AWS_ACCESS_KEY_ID"),
        (403, 403, "SignatureDoesNotMatch", "wrong secret key", "AWS_SECRET_ACCESS_KEY"),
        (403, 403, "RequestTimeTooSkewed", "this machine's clock", "clock"),
        (403, 403, "AccessDenied", "no permission to read from s3://", "s3:GetObject"),
    ],
)
async def test_a_head_refused_without_a_code_is_repeated_as_a_get(
    proxied, proxy, head_status, status, code, begins, hint
):
    store = proxied()
    proxy.on("head_object", refuse(head_status, ""))
    proxy.on("get_object", refuse(status, code))
    error = await head_fails(store)
    assert error.message.startswith(begins)
    assert code in error.message
    assert hint in error.hint
    assert not error.transient
    assert proxy.seen[-1] == "get_object"
    assert proxy.requests[-1].headers["Range"] == "bytes=0-0"


async def test_a_refusal_without_a_code_stays_one_if_a_get_does_not_explain_it(proxied, proxy):
    store = proxied()
    proxy.on("head_object", refuse(403, ""))
    error = await head_fails(store)  # the object does not exist: a GET answers 404
    assert isinstance(error, NotPermitted | NoSuchObject)


async def test_a_missing_bucket_is_named_first_in_the_error(moto, aws):
    async with store_at(moto.endpoint, bucket="no-such-bucket") as store:
        with pytest.raises(StoreError) as failure:
            [item async for item in store.list("")]
    host = moto.endpoint.removeprefix("http://")
    assert ":" in host
    assert failure.value.message.startswith(f"bucket no-such-bucket does not exist at {host}")
    assert store.location == f"s3://no-such-bucket at {host}"


@pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "ca_bundle in ~/.aws/config"])
async def test_an_unreadable_ca_bundle_is_named_with_its_setting(name, moto_tls, aws, monkeypatch, tmp_path):
    missing = tmp_path / "no-such.pem"
    if name.startswith("ca_bundle"):
        (tmp_path / "config").write_text(f"[default]\nca_bundle = {missing}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    else:
        monkeypatch.setenv(name, str(missing))
    async with store_at(moto_tls.endpoint) as store:
        error = await head_fails(store)
        assert error.message == f"the CA bundle {missing} cannot be read: No such file or directory"
        assert error.hint == f"correct {name}"
        assert not error.transient
        missing.write_text("this is no certificate")
        assert (await head_fails(store)).message == f"the CA bundle {missing} has no usable certificate"


async def test_the_missing_half_of_a_key_is_named(moto, aws, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with store_at(moto.endpoint) as store:
        error = await head_fails(store)
    assert error.message.startswith("AWS_SECRET_ACCESS_KEY is missing: ")
    assert error.hint == "set AWS_SECRET_ACCESS_KEY"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_access_key_id = AKIA\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    async with store_at(moto.endpoint) as store:
        error = await head_fails(store)
    assert error.message.startswith(
        "aws_secret_access_key is missing in the AWS configuration (shared-credentials-file)"
    )


async def test_an_unreadable_web_identity_token_is_named_with_its_variable(moto, aws, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    missing = tmp_path / "token"
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(missing))
    async with store_at(moto.endpoint) as store:
        error = await head_fails(store)
    assert error.message == f"the web identity token {missing} cannot be read: No such file or directory"
    assert "AWS_WEB_IDENTITY_TOKEN_FILE" in error.hint
    assert not error.transient


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_requires_a_password_is_named_in_the_error(scheme, aws, monkeypatch):
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    async with proxy_that(refusal) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:canary@{proxy}")
        async with store_at(f"{scheme}://store.invalid") as store:
            error = await head_fails(store)
    assert error.message == f"the proxy {proxy} requires a user and a password: status 407"
    assert f"{scheme.upper()}_PROXY" in error.hint
    assert not error.transient
    assert "canary" not in str(error)


async def test_an_unreachable_proxy_is_a_transient_error_that_names_it(aws, monkeypatch):
    async with proxy_that(b"x") as proxy:
        pass
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
    async with store_at("https://store.invalid") as store:
        error = await head_fails(store)
    assert error.message.startswith(f"no connection to the proxy {proxy}: ")
    assert "HTTPS_PROXY" in error.hint
    assert error.transient


async def test_an_unsupported_kind_of_proxy_is_named(aws, monkeypatch):
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1080")
    async with store_at("https://store.invalid") as store:
        error = await head_fails(store)
    assert error.message == "the proxy 127.0.0.1:1080 is not supported: it is a socks5 proxy"
    assert "https_proxy" in error.hint
    assert not error.transient


async def test_the_certificate_of_the_store_is_checked_through_a_proxy(moto_tls, aws, monkeypatch):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with proxy_that(b"") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        async with store_at(moto_tls.endpoint, bucket=moto_tls.new_bucket()) as store:
            error = await head_fails(store)
        assert "certificate" in error.message
        monkeypatch.setenv("AWS_CA_BUNDLE", str(moto_tls.ca))
        async with store_at(moto_tls.endpoint, bucket=moto_tls.new_bucket()) as store:
            assert isinstance(await head_fails(store), NoSuchObject)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ("s3 =\n    use_accelerate_endpoint = true", "use_accelerate_endpoint in ~/.aws/config"),
        ("s3 =\n    use_dualstack_endpoint = true", "use_dualstack_endpoint in ~/.aws/config"),
        ("use_dualstack_endpoint = true", "use_dualstack_endpoint in ~/.aws/config"),
        ("use_fips_endpoint = true", "use_fips_endpoint in ~/.aws/config"),
    ],
)
async def test_configuration_keys_for_aws_endpoints_only_are_an_error_that_names_them(
    config, named, moto, aws, monkeypatch, tmp_path
):
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with store_at(moto.endpoint) as store:
        error = await head_fails(store)
    assert named in error.message
    assert not error.transient


async def test_an_invalid_aws_configuration_is_a_permanent_error(aws, monkeypatch, tmp_path):
    (tmp_path / "config").write_text("[default]\ns3 =\n    use_accelerate_endpoint = true\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with store_at("", bucket="a.bucket.with.dots") as store:
        error = await head_fails(store)
    assert error.message.startswith("the AWS configuration does not fit ")
    assert "use_accelerate_endpoint" in error.hint
    assert not error.transient
