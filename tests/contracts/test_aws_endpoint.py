"""`aws_endpoint` finds the endpoint that botocore itself uses."""

import pytest

from agent.settings.aws_config import aws_endpoint

ENV_S3, ENV_ALL = "https://env-s3.example.com", "https://env.example.com"
PROFILE, SERVICES, OTHER = "https://profile.example.com", "https://services.example.com", "https://other.example.com"

CONFIG = f"""
[default]
region = eu-default-1
endpoint_url = {PROFILE}

[profile plain]
region = eu-plain-1

[profile "two words"]
endpoint_url = {OTHER}

[profile sections]
services = mine
endpoint_url = {PROFILE}

[profile other-service]
services = without-s3
endpoint_url = {OTHER}

[profile ignoring]
ignore_configured_endpoint_urls = True
endpoint_url = {OTHER}

[profile not-ignoring]
ignore_configured_endpoint_urls = no
endpoint_url = {OTHER}

[no-profile]
endpoint_url = https://never.example.com

[services mine]
s3 =
  endpoint_url = {SERVICES}
  addressing_style = path
ec2 =
  endpoint_url = https://never.example.com

[services without-s3]
ec2 =
  endpoint_url = https://never.example.com
"""

CREDENTIALS = f"""
[default]
aws_access_key_id = a
aws_secret_access_key = b

[in-credentials]
endpoint_url = {OTHER}
region = eu-credentials-1

[plain]
endpoint_url = {OTHER}
"""

CASES = {
    "nothing": ({}, ""),
    "a profile": ({}, CONFIG),
    "a variable": ({"AWS_ENDPOINT_URL": ENV_ALL}, ""),
    "a variable before the profile": ({"AWS_ENDPOINT_URL": ENV_ALL}, CONFIG),
    "the service's variable first": ({"AWS_ENDPOINT_URL": ENV_ALL, "AWS_ENDPOINT_URL_S3": ENV_S3}, CONFIG),
    "an empty variable": ({"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": ""}, CONFIG),
    "another profile": ({"AWS_PROFILE": "two words"}, CONFIG),
    "the older variable of a profile first": ({"AWS_PROFILE": "plain", "AWS_DEFAULT_PROFILE": "two words"}, CONFIG),
    "a profile whose endpoint is in the credentials file": ({"AWS_PROFILE": "plain"}, CONFIG),
    "a profile of the credentials file": ({"AWS_PROFILE": "in-credentials"}, CONFIG),
    "a services section": ({"AWS_PROFILE": "sections"}, CONFIG),
    "a services section, and a variable": ({"AWS_PROFILE": "sections", "AWS_ENDPOINT_URL": ENV_ALL}, CONFIG),
    "a services section without s3": ({"AWS_PROFILE": "other-service"}, CONFIG),
    "ignored by a variable": ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "TRUE", "AWS_ENDPOINT_URL": ENV_ALL}, CONFIG),
    "not ignored by a variable": (
        {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false", "AWS_PROFILE": "ignoring"},
        CONFIG,
    ),
    "ignored by a profile": ({"AWS_PROFILE": "ignoring", "AWS_ENDPOINT_URL": ENV_ALL}, CONFIG),
    "not ignored by a profile": ({"AWS_PROFILE": "not-ignoring"}, CONFIG),
    "a region by a variable": ({"AWS_DEFAULT_REGION": "eu-variable-1", "AWS_ENDPOINT_URL": ENV_ALL}, CONFIG),
    "a variable that botocore does not know": ({"AWS_REGION": "eu-none-1", "AWS_ENDPOINT_URL": ENV_ALL}, ""),
    "other INI syntax": (
        {},
        f"[DEFAULT]\nregion: eu-all-1\n\n[default]\nENDPOINT_URL : {PROFILE}\n# endpoint_url = {OTHER}\n",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_endpoint_is_the_one_that_botocore_uses(case, aws_files):
    import aiobotocore.session

    environ, config = CASES[case]
    environ, home = aws_files(environ, config, CREDENTIALS)
    session = aiobotocore.session.get_session()
    ignored = session.get_config_variable("ignore_configured_endpoint_urls")
    endpoint = None if ignored else _configured(session)
    found = aws_endpoint(environ, home)
    assert (found.url.value if found else None) == endpoint
    if found:
        assert (found.region.value if found.region else None) == session.get_config_variable("region")


@pytest.fixture
def aws_files(tmp_path, monkeypatch):
    """Write the files, and set the variables in the environment of this process, which botocore reads."""

    def make(environ, config, credentials):
        for name in [name for name in __import__("os").environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "config").write_text(config)
        (tmp_path / ".aws" / "credentials").write_text(credentials)
        environ = environ | {"HOME": str(tmp_path)}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return environ, tmp_path

    return make


def _configured(session):
    """Return the endpoint of a client of this session, from the provider that `create_client` uses."""
    from botocore.configprovider import ConfiguredEndpointProvider

    return ConfiguredEndpointProvider(
        full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
    ).provide()


@pytest.mark.parametrize("written", ["$HERE/aws", "${HERE}/aws", "~/aws"])
def test_a_variable_sets_the_path_of_the_file(written, aws_files, tmp_path):
    from botocore import session

    environ, home = aws_files({"AWS_CONFIG_FILE": written, "HERE": str(tmp_path)}, "", "")
    (tmp_path / "aws").write_text(CONFIG)
    assert aws_endpoint(environ, home).url.value == PROFILE == _configured(session.get_session())


@pytest.mark.parametrize("config", ["no section", "[default]\nx", "[default]\n[default]\n", "\udcff"])
def test_an_invalid_file_counts_as_empty(config, aws_files, tmp_path):
    environ, home = aws_files({}, "", "")
    (tmp_path / ".aws" / "config").write_bytes(config.encode("utf-8", "surrogateescape"))
    assert aws_endpoint(environ, home) is None
