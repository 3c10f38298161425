"""Validation of buckets and addresses: memories are sent only encrypted or within this machine."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from hypothesis import given, strategies as st

from agent.settings.endpoints import (
    check_bucket,
    check_cloud_endpoint,
    check_http_endpoint,
    check_nats_url,
    directory_of,
    is_akosha_address,
    is_loopback,
    is_plaintext,
    nats_servers,
    without_bucket,
    without_credentials,
)

CANARY = "c4n4ry-s3cr3t"


@pytest.mark.parametrize("name", ["", "abc", "my-bucket", "my.bucket.2", "0a0", "a" * 63])
def test_a_valid_bucket_name_is_accepted(name):
    assert check_bucket(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "ab",
        "a" * 64,
        "My-bucket",
        "my_bucket",
        "-abc",
        "abc-",
        ".abc",
        "abc.",
        "a..b",
        "192.168.0.1",
        "abc\n",
        "bücket",
    ],
)
def test_an_invalid_bucket_name_is_refused(name):
    with pytest.raises(ValueError, match="3 to 63 lower-case letters"):
        check_bucket(name)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://abc123.r2.cloudflarestorage.com",
        "https://s3.eu-central-1.amazonaws.com",
        "https://minio.lan:9000",
        "https://10.0.0.5:9000/base",
        "https://[2001:db8::1]:9000",
        "http://localhost:9000",
        "http://LOCALHOST:9000",
        "http://127.0.0.1:9000",
        "http://127.8.9.10",
        "http://[::1]:9000",
        "file:///mnt/nas/akosha",
        "file://localhost/mnt/nas",
        "file:///mnt/my%20disk#1/@home",
    ],
)
def test_a_safe_cloud_endpoint_is_accepted(url):
    assert check_cloud_endpoint(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://minio.lan:9000",
        "http://10.0.0.5:9000",
        "http://128.0.0.1",
        "http://[::2]",
        "http://[fe80::1%25lo]",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://127.1",
        "http://2130706433",
        "http://0.0.0.0:9000",
        "http://localhost@evil.example",
        "http://localhost:x@evil.example",
        "http://localhost\\@evil.example",
        "http://loc\talhost",
        "http://local\nhost",
        "https://user:password@minio.lan",
        "https://minio.lan/?X-Token=abc",
        "https://minio.lan/#x",
        "https://",
        "https:///path",
        "https://.r2.cloudflarestorage.com",
        "https://a..b",
        "https://[::1",
        "https://[1:2]",
        "https://host:0",
        "https://host:65536",
        "https://host:",
        "https://host:port",
        "https://\uff45vil.example",
        "s3://bucket",
        "minio.lan:9000",
        "localhost:9000",
        "ftp://localhost",
    ],
)
def test_an_unsafe_cloud_endpoint_is_refused(url):
    with pytest.raises(ValueError, match="must"):
        check_cloud_endpoint(url)


@pytest.mark.parametrize(
    "url",
    [
        "file://mnt/nas",
        "file:/mnt/nas",
        "file:mnt",
        "file:",
        "file://",
        "file:///",
        "file:////",
        "file:///a%00b",
        f"file:///{'x' * 256}",
    ],
)
def test_a_file_endpoint_without_an_absolute_directory_is_refused(url):
    with pytest.raises(ValueError, match="must"):
        check_cloud_endpoint(url)


@pytest.mark.parametrize("url", ["", "file:///mnt/nas", "http://akosha.lan:8682/mcp", "https://u:p@akosha.lan/mcp"])
def test_an_unsafe_http_endpoint_is_refused(url):
    with pytest.raises(ValueError, match="must"):
        check_http_endpoint(url)


@pytest.mark.parametrize(
    "urls",
    [
        "",
        "nats://localhost:4222",
        "nats://a:4222,nats://b:4222",
        "tls://u:p@nats.lan",
        "tls://t0k3n@nats.lan, tls://b",
        "tls://me:p%40s%2Fs%3a%2C@nats.lan",
        "nats://[::1]:4222",
        "wss://nats.lan/events",
    ],
)
def test_nats_addresses_are_accepted(urls):
    assert check_nats_url(urls) == urls


@pytest.mark.parametrize("urls", ["localhost:4222", "http://nats.lan", "nats://", "nats://a,", "nats://a:99999"])
def test_an_invalid_nats_address_is_refused(urls):
    with pytest.raises(ValueError, match="must"):
        check_nats_url(urls)


@pytest.mark.parametrize(
    "urls",
    [
        "tls://@nats.lan",
        "tls://:p@nats.lan",
        "tls://u:@nats.lan",
        "tls://:@nats.lan",
        "tls://a,tls://u:@b",
        "tls://u:a%0ab@nats.lan",
        "tls://u%00:p@nats.lan",
        "tls://to/ken@nats.lan",
        "tls://to?ken@nats.lan",
        "tls://to#ken@nats.lan",
    ],
)
def test_an_incomplete_login_in_a_nats_address_is_refused_and_not_shown(urls):
    with pytest.raises(ValueError, match="must") as caught:
        check_nats_url(urls)
    assert "ken" not in str(caught.value).replace("token", "")


def test_nats_addresses_are_split_with_their_user_info():
    urls = "TLS://me:p%40ss@a:1, nats://[::1]:2 ,wss://b/x"
    assert check_nats_url(urls) == urls
    assert nats_servers(urls) == ("tls://me:p%40ss@a:1", "nats://[::1]:2", "wss://b/x")
    assert nats_servers("") == ()


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "127.9.8.7", "[::1]"])
def test_a_loopback_address_is_not_plaintext(host):
    assert not [scheme for scheme in ("nats", "ws", "tls", "wss") if is_plaintext(f"{scheme}://u:p@{host}:4222")]


@pytest.mark.parametrize(
    "host", ["nats.lan", "10.0.0.1", "128.0.0.1", "0.0.0.0", "[::2]", "[::ffff:127.0.0.1]", "localhost.lan", "a@b"]
)
def test_to_another_machine_everything_except_tls_is_plaintext(host):
    assert [scheme for scheme in ("nats", "ws", "tls", "wss") if is_plaintext(f"{scheme}://{host}")] == ["nats", "ws"]


def test_a_directory_is_percent_decoded_and_absolute():
    assert str(directory_of("file:///mnt/my%20disk")) == "/mnt/my disk"
    assert str(directory_of("file://localhost//mnt/a#b?c")) == "/mnt/a#b?c"


@pytest.mark.parametrize(
    ("url", "is_akosha"),
    [
        ("http://localhost:8682/mcp", True),
        ("https://akosha.lan/base/mcp/", True),
        ("https://akosha.lan/mcpx", False),
        ("https://akosha.lan/mcp/x", False),
        ("http://akosha.lan/mcp", True),
        ("file:///mnt/mcp", False),
        ("", False),
    ],
)
def test_only_an_http_url_that_ends_in_mcp_is_an_akosha_address(url, is_akosha):
    assert is_akosha_address(url) is is_akosha


@given(st.ip_addresses())
def test_an_address_is_loopback_by_the_standard_without_mapped_addresses(address):
    assert is_loopback(str(address)) == (address == ip_address("::1") or (address.version == 4 and address.is_loopback))


@given(st.ip_addresses(v=4, network="127.0.0.0/8"))
def test_all_of_127_is_loopback(address):
    assert check_cloud_endpoint(f"http://{address}:9000")


@given(st.text(max_size=60) | st.from_regex(r"(https?|file|s3)://[a-z0-9.@:/\\#?%\[\]-]{0,40}", fullmatch=True))
def test_every_accepted_endpoint_is_encrypted_or_loopback(url):
    try:
        check_cloud_endpoint(url)
    except ValueError:
        return
    parts = urlsplit(url)
    assert not url or parts.scheme in ("https", "file") or (parts.scheme == "http" and is_loopback(parts.hostname))
    assert parts.scheme == "file" or "@" not in parts.netloc


@given(st.text(max_size=20), st.sampled_from(["nats", "https", "tls", "nonsense"]), st.text(max_size=20))
def test_credentials_in_an_address_are_never_shown(before, scheme, after):
    for url in (
        f"{scheme}://{before.replace('@', '')}:{CANARY}@host{after.replace('@', '')}",
        f"{scheme}://{CANARY}@host,{scheme}://b:{CANARY}@other",
        f"{scheme}://host/?token={CANARY}{after.replace('@', '')}",
        f"{scheme}://host/#{CANARY}",
        f"user:{CANARY}@host",
    ):
        assert CANARY not in without_credentials(url)


def test_an_address_without_credentials_is_shown_unchanged():
    for url in ("https://s3.example/base", "nats://a:4222,nats://b:4222", "file:///mnt/@home/a#b?c", ""):
        assert without_credentials(url) == url


R2 = "0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (f"https://memories.{R2}", R2),
        (f"https://memories.0123456789abcdef0123456789abcdef.eu.{R2[33:]}", f"{R2[:32]}.eu.{R2[33:]}"),
        ("https://memories.s3.eu-west-1.amazonaws.com", "s3.eu-west-1.amazonaws.com"),
        ("https://memories.s3.amazonaws.com/", "s3.amazonaws.com"),
        ("https://memories.s3-eu-west-1.amazonaws.com", "s3-eu-west-1.amazonaws.com"),
        ("https://memories.s3.cn-north-1.amazonaws.com.cn", "s3.cn-north-1.amazonaws.com.cn"),
        ("https://memories.nyc3.digitaloceanspaces.com", "nyc3.digitaloceanspaces.com"),
        ("https://memories.s3.us-west-004.backblazeb2.com", "s3.us-west-004.backblazeb2.com"),
    ],
)
def test_a_host_that_starts_with_the_bucket_is_refused_with_the_correct_address(url, endpoint):
    with pytest.raises(ValueError, match=f"use https://{re.escape(endpoint)}$"):
        without_bucket(url, "memories")


@pytest.mark.parametrize(
    ("url", "bucket"),
    [
        ("https://memories.example.com", "memories"),
        ("https://s3.amazonaws.com", "s3"),
        ("https://nyc3.digitaloceanspaces.com", "nyc3"),
        (f"https://{R2}", R2[:32]),
        ("https://s3.eu-west-1.amazonaws.com", "memories"),
        ("file:///mnt/memories", "memories"),
        ("", "memories"),
    ],
)
def test_other_hosts_are_kept_for_any_bucket_name(url, bucket):
    assert without_bucket(url, bucket) == url
