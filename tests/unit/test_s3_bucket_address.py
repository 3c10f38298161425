"""Where a bucket is, worked out from the settings."""

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
def test_the_region_is_the_set_one_or_the_one_that_the_endpoint_wants(endpoint, region, signed_for):
    assert BucketAddress("bucket", endpoint, region).signing_region == signed_for


@pytest.mark.parametrize(
    ("endpoint", "style"),
    [("", "auto"), ("https://s3.eu-west-1.amazonaws.com", "auto"), (R2, "path"), ("http://127.0.0.1:9000", "path")],
)
def test_the_bucket_is_in_the_path_but_at_aws(endpoint, style):
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
def test_it_is_reached_at_the_endpoints_port(endpoint, address):
    assert BucketAddress("bucket", endpoint, "auto").tcp_address == address


def test_aws_is_reached_in_the_region_of_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert BucketAddress("bucket", "", "auto").host == "s3.eu-north-1.amazonaws.com"
    assert BucketAddress("bucket", "", "eu-west-1").host == "s3.eu-west-1.amazonaws.com"


def test_behind_a_proxy_it_is_reached_where_the_proxy_is(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "minio.example.org")
    assert BucketAddress("bucket", R2, "auto").tcp_address == ("proxy.example", 3128)
    assert BucketAddress("bucket", "https://minio.example.org", "auto").tcp_address == ("minio.example.org", 443)


def test_what_people_read_has_no_secret():
    assert (
        str(BucketAddress("bucket", "https://user:canary@minio.example.org:9000/", "auto"))
        == "s3://bucket at minio.example.org:9000"
    )
