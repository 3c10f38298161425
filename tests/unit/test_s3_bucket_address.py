"""The address of a bucket, derived from the settings."""

import pytest

from agent.adapters.s3.bucket_address import BucketAddress

R2 = "https://0123abcd.r2.cloudflarestorage.com"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in (
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "NO_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("endpoint", "region", "signed_for"),
    [
        ("", "auto", None),
        ("", "eu-west-1", "eu-west-1"),
        (R2, "auto", "auto"),
        (R2, "weur", "weur"),
        ("https://s3.eu-west-1.amazonaws.com", "auto", "eu-west-1"),
        ("https://s3.dualstack.eu-west-1.amazonaws.com", "auto", "eu-west-1"),
        ("https://s3.us-west-004.backblazeb2.com", "auto", "us-west-004"),
        ("https://s3.fr-par.scw.cloud", "auto", "fr-par"),
        ("https://s3.amazonaws.com", "auto", "us-east-1"),
        ("http://localhost:9000", "auto", "us-east-1"),
        ("https://minio.example.org", "", "us-east-1"),
    ],
)
def test_the_region_is_the_setting_or_follows_from_the_endpoint(endpoint, region, signed_for):
    assert BucketAddress("bucket", endpoint, region).signing_region == signed_for


@pytest.mark.parametrize(
    ("endpoint", "style"),
    [("", "auto"), ("https://s3.eu-west-1.amazonaws.com", "auto"), (R2, "path"), ("http://127.0.0.1:9000", "path")],
)
def test_the_bucket_is_in_the_path_except_on_aws(endpoint, style):
    assert BucketAddress("bucket", endpoint, "auto").addressing_style == style


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("", ("s3.us-east-1.amazonaws.com", 443)),
        (R2, ("0123abcd.r2.cloudflarestorage.com", 443)),
        ("http://localhost:9000", ("localhost", 9000)),
        ("http://localhost", ("localhost", 80)),
    ],
)
def test_the_tcp_address_is_that_of_the_endpoint(endpoint, address):
    assert BucketAddress("bucket", endpoint, "auto").tcp_address == address


def test_the_aws_host_has_the_region_of_the_setting_or_environment(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert BucketAddress("bucket", "", "auto").host == "s3.eu-north-1.amazonaws.com"
    assert BucketAddress("bucket", "", "eu-west-1").host == "s3.eu-west-1.amazonaws.com"


def test_behind_a_proxy_the_tcp_address_is_that_of_the_proxy(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "minio.example.org")
    assert BucketAddress("bucket", R2, "auto").tcp_address == ("proxy.example", 3128)
    assert BucketAddress("bucket", "https://minio.example.org", "auto").tcp_address == ("minio.example.org", 443)


def test_cas_are_needed_for_a_tls_endpoint_and_for_a_tls_proxy(monkeypatch):
    plain, secure = BucketAddress("bucket", "http://nas.example:9000", "auto"), BucketAddress("bucket", R2, "auto")
    assert (plain.uses_tls, secure.uses_tls, BucketAddress("bucket", "", "auto").uses_tls) == (False, True, True)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert plain.uses_tls is False
    monkeypatch.setenv("http_proxy", "https://proxy.example:3128")
    assert plain.uses_tls is True


def test_the_text_of_an_address_has_no_secret():
    assert (
        str(BucketAddress("bucket", "https://user:canary@minio.example.org:9000/", "auto"))
        == "s3://bucket at minio.example.org:9000"
    )
