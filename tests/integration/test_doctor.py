"""Each check of doctor: ok once, and failing because of real broken files, servers, permissions and clocks."""

import asyncio
import contextlib
import ctypes
import json
import os
import re
import shlex
import socket
import struct
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from agent import __version__
from agent.adapters.duckdb.source import HEADER_BYTES
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.state_directory import StateDirectory
from agent.adapters.system_clock import SystemClock
from agent.adapters.watcher import scan
from agent.adapters.wire import CloudEventsCodec
from agent.application.sync.bus_recovery import BUS
from agent.entrypoints.control_api import Limits, serve
from agent.entrypoints.doctor import agent_checks, delivery_checks, machine_checks, nats_checks
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.findings import Level, exit_code
from agent.entrypoints.doctor.run import examine
from agent.entrypoints.hook.claude_settings import ClaudeSettings
from agent.entrypoints.hook.hook_command import HookCommand
from agent.entrypoints.service.manager import Runner, ServiceSpec
from agent.entrypoints.service.systemd import Systemd
from agent.settings import Settings
from tests.support.control_api import FakeAgentService
from tests.support.servers.akosha import Akosha
from tests.support.servers.faulty_proxy import answer_with, refuse
from tests.support.servers.nats import connected, running_nats
from tests.support.servers.nats_credentials import PASSWORD, USER
from tests.support.servers.nats_hub import KEYS, running_hub
from tests.support.servers.s3 import ACCESS_KEY, SECRET_KEY

pytest_plugins = ["tests.support.servers.fixtures"]

TOKEN = "canary-token-that-never-appears"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
OK, SKIPPED, NOTE, WARNING, ERROR = Level.OK, Level.SKIPPED, Level.NOTE, Level.WARNING, Level.ERROR


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.fixture
def directories(tmp_path):
    """The settings of a machine with a working data directory and state directory."""
    data, state = tmp_path / "data", tmp_path / "state"
    data.mkdir()
    state.mkdir(mode=0o700)
    return {"agent_data_dir": data, "agent_state_dir": state, "system_id": "laptop"}


async def no_metrics():
    return b"", "text/plain"


def make_context(directories, home, *, proc=Path("/proc"), environ=None, step_seconds=4.0, **settings):
    tree = Settings(**{**directories, **settings})
    return DoctorContext(
        settings=tree, proc=proc, environ=environ or {}, cwd=home, user_home=home, step_seconds=step_seconds
    )


@pytest.fixture
async def shared_context(directories, tmp_path):
    """Return a function that creates a context for several checks, which share its connections."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**options):
            context = make_context(directories, tmp_path, **options)
            stack.push_async_callback(context.aclose)
            return context

        yield make


@pytest.fixture
def run(directories, tmp_path):
    """Return a function that runs one check, in a context or with settings. Assert that no finding has a secret."""

    async def run_check(check, context=None, **options):
        used = context or make_context(directories, tmp_path, **options)
        try:
            async with asyncio.timeout(60):
                found = await check(used)
        finally:
            if context is None:
                await used.aclose()
        texts = repr(found)
        assert not [secret for secret in (SECRET_KEY, ACCESS_KEY, ACCESS_KEY[:8], PASSWORD, TOKEN) if secret in texts]
        return found

    return run_check


def levels(found):
    return [one.level for one in found]


def one(found, level):
    """Return the only finding. Assert its level, and that it has a hint unless it is ok or skipped."""
    (only,) = found
    assert only.level is level, only
    assert bool(only.hint) is (level in (NOTE, WARNING, ERROR))
    return only


def header(*, version=64, block_bytes=262_144):
    data = bytearray(HEADER_BYTES)
    struct.pack_into("<Q4sQ", data, 0, 0xFEED, b"DUCK", version)
    for at in (4096, 8192):
        struct.pack_into("<7Q", data, at, 0xC0FFEE, 1, 7, 8, 19, block_bytes, 2048)
    return bytes(data)


def unprivileged(work):
    """Await `work` on a thread without root's capabilities, so that file modes apply to root too."""
    outcome = {}

    def run():
        try:
            if os.geteuid() == 0:
                head, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
                assert ctypes.CDLL(None, use_errno=True).capset(head, nothing) == 0
            outcome["found"] = asyncio.run(work())
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            outcome["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["found"]


def tree(folder):
    """Return every path below a folder with its mode, size and modification time."""
    return {
        path.relative_to(folder): (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


# This machine.


async def test_an_existing_data_directory_is_reported_with_its_file_system(run, directories):
    found = one(await run(machine_checks.data_directory), OK)
    assert str(directories["agent_data_dir"]) in found.found


async def test_a_data_directory_that_is_missing_or_a_file_is_an_error(run, tmp_path):
    (tmp_path / "file").touch()
    missing = one(await run(machine_checks.data_directory, agent_data_dir=tmp_path / "none"), ERROR)
    assert "does not exist" in missing.found
    assert "akosha_agent_data_dir" in missing.hint
    assert (
        "not a directory"
        in one(await run(machine_checks.data_directory, agent_data_dir=tmp_path / "file"), ERROR).found
    )


@LINUX
def test_a_data_directory_without_permission_is_an_error_with_a_chmod_hint(run, directories):
    data = directories["agent_data_dir"]
    data.chmod(0)
    found = one(unprivileged(lambda: run(machine_checks.data_directory)), ERROR)
    words = shlex.split(found.hint)
    assert words[0] == "chmod"
    assert words[2] == str(data)
    data.chmod(0o500)
    one(unprivileged(lambda: run(machine_checks.data_directory)), OK)


async def test_directories_on_a_network_share_are_warnings(run, directories, tmp_path, monkeypatch):
    """Only the kernel's mount table is fake."""
    (tmp_path / "mountinfo").write_text(f"1 0 0:30 / {tmp_path} rw - nfs4 nas:/home rw\n")
    monkeypatch.setattr(scan, "_MOUNTS", tmp_path / "mountinfo")
    assert "nfs4" in one(await run(machine_checks.data_directory), WARNING).found
    assert "akosha_agent_state_dir" in one(await run(machine_checks.state_directory), WARNING).hint


async def test_a_state_directory_is_ok_if_its_mode_is_0700_or_it_does_not_exist_yet(run, tmp_path):
    one(await run(machine_checks.state_directory), OK)
    found = one(await run(machine_checks.state_directory, agent_state_dir=tmp_path / "new" / "state"), OK)
    assert "the first start creates it" in found.found
    assert not (tmp_path / "new").exists()


async def test_a_state_directory_that_others_can_read_is_a_warning_and_is_not_changed(run, directories):
    directories["agent_state_dir"].chmod(0o755)
    found = one(await run(machine_checks.state_directory), WARNING)
    assert found.hint == f"chmod 700 {directories['agent_state_dir']}"
    assert directories["agent_state_dir"].stat().st_mode & 0o777 == 0o755


async def test_a_state_directory_inside_the_data_directory_or_replaced_by_a_file_is_an_error(
    run, directories, tmp_path
):
    found = one(await run(machine_checks.state_directory, agent_state_dir=directories["agent_data_dir"] / "s"), ERROR)
    assert "contain one another" in found.found
    (tmp_path / "file").touch()
    assert (
        "not a directory"
        in one(await run(machine_checks.state_directory, agent_state_dir=tmp_path / "file"), ERROR).found
    )


@LINUX
def test_a_state_directory_that_cannot_be_written_or_created_is_an_error(run, directories, tmp_path):
    directories["agent_state_dir"].chmod(0o500)
    assert "written" in one(unprivileged(lambda: run(machine_checks.state_directory)), ERROR).found
    (tmp_path / "closed").mkdir(mode=0o500)
    found = one(
        unprivileged(lambda: run(machine_checks.state_directory, agent_state_dir=tmp_path / "closed" / "state")), ERROR
    )
    assert "cannot be created" in found.found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a directory away")
async def test_a_state_directory_of_another_user_is_an_error(run, directories):
    os.chown(directories["agent_state_dir"], 65534, 65534)
    assert "belongs to user 65534" in one(await run(machine_checks.state_directory), ERROR).found


async def test_free_space_for_two_copies_is_ok_for_one_a_warning_and_for_none_an_error(run, directories):
    one(await run(machine_checks.free_space), OK)
    reported = os.statvfs(directories["agent_state_dir"])
    free = reported.f_bavail * reported.f_frsize
    database = directories["agent_data_dir"] / "reflection.duckdb"
    for size, level in ((int(free * 0.75), WARNING), (free * 2, ERROR)):
        database.touch()
        os.truncate(database, size)  # sparse: it uses no space
        found = one(await run(machine_checks.free_space), level)
        assert "akosha_agent_state_dir" in found.hint


@LINUX
async def test_inotify_instances_in_use_are_counted_against_the_limit(run, tmp_path):
    """The descriptors of this process are real; the limits are lower than those of the machine."""
    limits = tmp_path / "proc" / "sys" / "fs" / "inotify"
    limits.mkdir(parents=True)
    (tmp_path / "proc" / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    (limits / "max_user_watches").write_text("1000\n")
    (limits / "max_user_instances").write_text("128\n")
    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    try:
        libc.inotify_add_watch(descriptor, str(tmp_path).encode(), 2)
        found = one(await run(machine_checks.inotify, proc=tmp_path / "proc"), OK)
        assert "1 of 1000 watches" in found.found
        assert "1 of 128 instances" in found.found
        (limits / "max_user_instances").write_text("2\n")
        found = one(await run(machine_checks.inotify, proc=tmp_path / "proc"), WARNING)
        assert "sysctl -w fs.inotify.max_user_instances=512" in found.hint
    finally:
        os.close(descriptor)
    one(await run(machine_checks.inotify, proc=tmp_path / "no-proc"), SKIPPED)


async def test_databases_are_reported_with_size_wal_format_and_processes(run, directories):
    database = directories["agent_data_dir"] / "reflection.duckdb"
    database.write_bytes(header())
    (directories["agent_data_dir"] / "reflection.duckdb.wal").write_bytes(b"w" * 5000)
    with database.open("rb"):
        found = one(await run(machine_checks.databases), OK)
        assert "17.3 kB, 5.0 kB of it in its WAL" in found.found
        assert "DuckDB 1.0 and newer" in found.found
        if sys.platform == "linux":
            assert f"({os.getpid()})" in found.detail
    assert one(await run(machine_checks.databases), OK).detail == ""


async def test_no_database_is_a_warning_and_no_data_directory_skips_the_check(run, tmp_path):
    one(await run(machine_checks.databases), WARNING)
    one(await run(machine_checks.databases, agent_data_dir=tmp_path / "none"), SKIPPED)


@LINUX
def test_each_unreadable_database_is_an_error_and_the_others_are_ok(run, directories):
    data = directories["agent_data_dir"]
    (data / "reflection.duckdb").write_bytes(header())
    (data / "knowledge_graph.duckdb").write_bytes(header()[:100])
    (data / "knowledge_graph_a.duckdb").mkdir()
    (data / "knowledge_graph_b.duckdb").write_bytes(header())
    (data / "knowledge_graph_b.duckdb").chmod(0)
    (data / "knowledge_graph_c.duckdb").write_bytes(header())
    (data / "knowledge_graph_c.duckdb.wal").touch(mode=0)
    found = {one.name: one for one in unprivileged(lambda: run(machine_checks.databases))}
    assert found.pop("database reflection").level is OK
    assert {one.level for one in found.values()} == {ERROR}
    assert "100 bytes" in found["database knowledge_graph"].found
    assert "directory" in found["database knowledge_graph_a"].found
    assert found["database knowledge_graph_b"].hint.startswith("chmod u+r ")
    assert "knowledge_graph_c.duckdb.wal" in found["database knowledge_graph_c"].found
    data.chmod(0)
    with pytest.raises(Exception, match="cannot read the data directory"):
        unprivileged(lambda: run(machine_checks.databases))
    data.chmod(0o700)


@pytest.mark.parametrize("data", [header(version=5000), header(block_bytes=7)], ids=["newer", "encrypted"])
async def test_a_database_format_unknown_to_duckdb_is_a_warning(run, directories, data):
    (directories["agent_data_dir"] / "reflection.duckdb").write_bytes(data)
    found = one(await run(machine_checks.databases), WARNING)
    assert "unverified" in found.hint


async def test_an_intact_ledger_is_reported_unchanged_and_a_damaged_one_is_an_error(run, directories):
    state = directories["agent_state_dir"]
    one(await run(machine_checks.ledger), SKIPPED)
    ledger = await SqliteLedger.open(state / "ledger.sqlite", CloudEventsCodec(), clock=SystemClock())
    assert "intact" in one(await run(machine_checks.ledger), OK).found  # while it is open for writing
    await ledger.aclose()
    before = tree(state)
    one(await run(machine_checks.ledger), OK)
    assert tree(state) == before
    with (state / "ledger.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    damaged = one(await run(machine_checks.ledger), ERROR)
    assert "damaged" in damaged.found
    assert "moves it aside" in damaged.hint


# Delivery.


@pytest.fixture
def s3(moto, aws):
    """Settings for a new bucket. A test may replace the endpoint by that of a proxy."""
    return {"cloud_bucket": moto.new_bucket(), "cloud_endpoint": moto.endpoint}


async def test_a_working_bucket_is_left_empty(run, shared_context, s3, moto):
    context = shared_context(**s3)
    credentials = one(await run(delivery_checks.credentials, context), OK)
    assert credentials.found == f"from the environment (AWS_ACCESS_KEY_ID), key ending in {ACCESS_KEY[-4:]}"
    assert "put, get, list and delete work" in one(await run(delivery_checks.bucket, context), OK).found
    assert one(await run(delivery_checks.leftovers, context), OK).found == "none"
    assert b"<Key>" not in moto._ask("GET", f"/{s3['cloud_bucket']}?list-type=2")


async def test_credentials_are_reported_with_their_file_and_missing_ones_are_an_error(run, s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    found = one(await run(delivery_checks.credentials, **s3), ERROR)
    assert "AWS_ACCESS_KEY_ID" in found.hint
    one(await run(delivery_checks.bucket, **s3), SKIPPED)  # one fault, one error
    text = f"[default]\naws_access_key_id = short\naws_secret_access_key = {SECRET_KEY}\n"
    (tmp_path / "credentials").write_text(text)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    found = one(await run(delivery_checks.credentials, **s3), OK)
    assert found.found == "from ~/.aws/credentials"


async def test_a_bucket_that_does_not_exist_or_refuses_puts_is_an_error(run, s3, proxy):
    missing = one(await run(delivery_checks.bucket, **{**s3, "cloud_bucket": "no-such-bucket"}), ERROR)
    assert "create the bucket" in missing.hint
    proxy.on("put_object", refuse(403, "AccessDenied"))
    found = one(await run(delivery_checks.bucket, **{**s3, "cloud_endpoint": proxy.url}), ERROR)
    assert "s3:PutObject" in found.hint


async def test_least_privilege_is_ok_and_the_probe_is_one_object_outside_of_all_uploads(
    run, shared_context, s3, proxy, moto
):
    """The documentation promises that put, get and list are enough, so lacking the permission to delete is OK."""
    proxy.on("delete_object", refuse(403, "AccessDenied"))
    proxy.on("list_multipart_uploads", refuse(403, "AccessDenied"))
    context = shared_context(**{**s3, "cloud_endpoint": proxy.url})
    for _ in range(2):
        assert "delete is not permitted" in one(await run(delivery_checks.bucket, context), OK).found
    assert "not permitted to list" in one(await run(delivery_checks.leftovers, context), OK).found
    listing = moto._ask("GET", f"/{s3['cloud_bucket']}?list-type=2").decode()
    assert listing.count("<Key>") == 1
    assert "<Key>systems/laptop/.probe</Key>" in listing
    proxy.on("get_object", answer_with(replace=("akosha-agent", "somebody-els")))
    assert "differs from the object written" in one(await run(delivery_checks.bucket, context), ERROR).found


async def test_the_probe_uses_the_encryption_and_storage_class_of_uploads(run, s3, proxy):
    upload_options = {"cloud_sse": "aws:kms", "cloud_sse_kms_key_id": "key-1", "cloud_storage_class": "standard_ia"}
    settings = {**s3, "cloud_endpoint": proxy.url} | upload_options
    one(await run(delivery_checks.bucket, **settings), OK)
    put = proxy.requests[proxy.seen.index("put_object")].headers
    sent = [put.get(f"x-amz-{name}") for name in (
        "server-side-encryption", "server-side-encryption-aws-kms-key-id", "storage-class")]  # fmt: skip
    assert sent == ["aws:kms", "key-1", "STANDARD_IA"]
    proxy.on("put_object", refuse(400, "KMS.NotFoundException"))
    found = one(await run(delivery_checks.bucket, **settings), ERROR)
    assert "akosha_cloud_sse_kms_key_id" in found.hint


async def test_an_unreachable_bucket_is_an_error_at_once(run, aws):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    found = one(
        await run(delivery_checks.bucket, cloud_bucket="memories", cloud_endpoint=f"http://127.0.0.1:{port}"), ERROR
    )
    assert "cannot be reached" in found.found
    assert "akosha_cloud_endpoint" in found.hint


async def test_old_unfinished_uploads_are_a_warning_and_recent_ones_may_be_in_progress(
    run, shared_context, s3, moto, monkeypatch
):
    moto._ask("POST", f"/{s3['cloud_bucket']}/systems/laptop/uploads/x/reflection.duckdb?uploads=")
    moto._ask("POST", f"/{s3['cloud_bucket']}/systems/other/uploads/x/reflection.duckdb?uploads=")
    context = shared_context(**s3)
    found = one(await run(delivery_checks.leftovers, context), WARNING)
    assert found.found.startswith("1 unfinished uploads")
    assert "next upload" in found.hint
    monkeypatch.setattr(delivery_checks, "UNFINISHED_AGE", timedelta(days=10_000))
    assert "1 may be in progress" in one(await run(delivery_checks.leftovers, context), OK).found


async def test_the_clock_is_compared_with_the_date_of_any_response_of_the_store(run, shared_context, s3, proxy):
    context = shared_context(**{**s3, "cloud_endpoint": proxy.url}, enable_fallback=False)
    assert "the bucket's" in one(await run(delivery_checks.clock, context), OK).found
    for seconds, level in ((120, WARNING), (-120, WARNING), (1200, ERROR)):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        proxy.on("list_objects_v2", answer_with(headers={"Date": date}), times=1)
        found = one(await run(delivery_checks.clock, context), level)
        assert ("behind" in found.found) is (seconds > 0)
    date = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    proxy.on("list_objects_v2", refuse(403, "RequestTimeTooSkewed", headers={"Date": date}))
    one(await run(delivery_checks.clock, context), ERROR)


async def test_a_directory_used_as_the_bucket_is_probed_like_a_bucket(run, tmp_path):
    (tmp_path / "share").mkdir()
    cloud = {"cloud_endpoint": (tmp_path / "share" / "bucket").as_uri()}
    one(await run(delivery_checks.credentials, **cloud), SKIPPED)
    assert "first upload" in one(await run(delivery_checks.bucket, **cloud), OK).found
    assert not (tmp_path / "share" / "bucket").exists()
    (tmp_path / "share" / "bucket").mkdir()
    assert "put, get, list and delete work" in one(await run(delivery_checks.bucket, **cloud), OK).found
    assert not [path for path in (tmp_path / "share" / "bucket").rglob("*") if path.is_file()]
    one(await run(delivery_checks.leftovers, **cloud), OK)
    found = one(await run(delivery_checks.bucket, cloud_endpoint=(tmp_path / "gone" / "bucket").as_uri()), ERROR)
    assert str(tmp_path / "gone") in found.hint


async def test_a_target_on_the_disk_of_the_databases_is_a_note_and_in_their_directory_an_error(
    run, directories, tmp_path, monkeypatch
):
    data = directories["agent_data_dir"]
    found = one(await run(delivery_checks.target_disk, cloud_endpoint=(tmp_path / "new" / "bucket").as_uri()), NOTE)
    assert "on the same disk as the databases" in found.found
    assert exit_code([found]) == 0
    (tmp_path / "link").symlink_to(data)
    found = one(await run(delivery_checks.target_disk, cloud_endpoint=(tmp_path / "link" / "x").as_uri()), ERROR)
    assert found.found.endswith(f"is in the data directory, {data}")
    monkeypatch.setattr(delivery_checks, "_device", hash)
    one(await run(delivery_checks.target_disk, cloud_endpoint=(tmp_path / "bucket").as_uri()), OK)


async def test_leftovers_of_a_killed_upload_in_a_directory_are_a_warning_and_stay(run, tmp_path):
    left = tmp_path / "bucket" / ".akosha" / "incoming" / "systems" / "laptop" / "uploads" / "u" / "x" / "123-4"
    left.parent.mkdir(parents=True)
    left.touch()
    one(await run(delivery_checks.leftovers, cloud_endpoint=(tmp_path / "bucket").as_uri()), WARNING)
    assert left.exists()


@LINUX
def test_a_directory_that_cannot_be_written_is_an_error(run, tmp_path):
    (tmp_path / "bucket").mkdir(mode=0o500)
    found = one(unprivileged(lambda: run(delivery_checks.bucket, cloud_endpoint=(tmp_path / "bucket").as_uri())), ERROR)
    assert "chmod" in found.hint


async def test_a_damaged_ledger_is_an_error_of_one_check_only(directories, tmp_path):
    state = directories["agent_state_dir"]
    ledger = await SqliteLedger.open(state / "ledger.sqlite", CloudEventsCodec(), clock=SystemClock())
    await ledger.aclose()
    intact = (state / "ledger.sqlite").read_bytes()
    (tmp_path / "bucket").mkdir()
    for first in (0, 4096):  # SQLite's header; the tables
        (state / "ledger.sqlite").write_bytes(intact[:first] + b"\xff" * 8192 + intact[first + 8192 :])
        context = make_context(directories, tmp_path, cloud_endpoint=(tmp_path / "bucket").as_uri())
        found = [finding for _, finding in await examine(context)]
        assert [finding.name for finding in found if "damaged" in finding.found and finding.level is ERROR] == [
            "ledger"
        ]


async def test_without_a_cloud_target_its_checks_are_skipped(run):
    for check in (delivery_checks.credentials, delivery_checks.bucket, delivery_checks.leftovers):
        one(await run(check), SKIPPED)


@pytest.fixture(scope="module")
def akosha():
    with Akosha(token=TOKEN) as server:
        yield server


async def test_a_working_akosha_is_reported_with_its_version_and_time(run, akosha):
    http = {"http_endpoint": akosha.url, "http_token": TOKEN}
    assert f"version {akosha.version}" in one(await run(delivery_checks.akosha, **http), OK).found
    assert "Akosha's" in one(await run(delivery_checks.clock, **http), OK).found


async def test_an_akosha_problem_is_an_error_for_the_first_method_and_a_warning_for_the_fallback(run, akosha, tmp_path):
    http = {"http_endpoint": akosha.url, "http_token": "another"}
    assert "akosha_http_token" in one(await run(delivery_checks.akosha, **http), ERROR).hint
    cloud = {"cloud_endpoint": tmp_path.as_uri()}
    assert (
        "akosha_enable_fallback"
        in one(await run(delivery_checks.akosha, http_endpoint="http://127.0.0.1:9/mcp", **cloud), WARNING).hint
    )
    one(await run(delivery_checks.akosha, **http, **cloud, enable_fallback=False), SKIPPED)


async def test_an_akosha_that_is_down_is_an_error_and_skips_the_clock_check(run):
    http = {"http_endpoint": "http://127.0.0.1:9/mcp"}
    assert "akosha_http_endpoint" in one(await run(delivery_checks.akosha, **http), ERROR).hint
    one(await run(delivery_checks.clock, **http), SKIPPED)


# The bus.

NEEDED = [
    "akosha.*.laptop.>",
    "akosha.progress.laptop",
    "$JS.API.DIRECT.GET.AKOSHA_SYNC.akosha.session.laptop.ended",
    "$JS.API.DIRECT.GET.AKOSHA_SYNC.akosha.sync.laptop.*",
    "$SYS.REQ.USER.INFO",
]
USERS = {
    USER: None,
    "listener": {"publish": {"deny": ["akosha.sync.>"]}},
    "deaf": {"subscribe": {"allow": ["akosha.>"]}},
    "minimal": {"publish": {"allow": NEEDED}, "subscribe": {"allow": ["akosha.*.laptop.>", "_INBOX.laptop.>"]}},
    "reader": {"publish": {"deny": ["$JS.API.STREAM.CREATE.>"]}},
    "silent": {"publish": {"deny": ["$SYS.>"]}},
}


@pytest.fixture(scope="module")
def nats(tmp_path_factory):
    users = [
        {"user": user, "password": PASSWORD, **({"permissions": rights} if rights else {})}
        for user, rights in USERS.items()
    ]
    config = f"authorization: {json.dumps({'users': users})}"
    with running_nats(tmp_path_factory.mktemp("nats"), config=config) as server:
        yield server


@pytest.fixture
def bus(nats, run):
    async def made(user=USER, **settings):
        options = {"agent_nats_url": nats.url, "agent_nats_user": user, "agent_nats_password": PASSWORD}
        return await run(nats_checks.nats, **{**options, **settings})

    return made


AGENTS_STREAM = StreamConfig(name="AKOSHA_SYNC", allow_direct=True, max_consumers=10_000, duplicate_window=600)


async def with_stream(nats, *subjects):
    async with connected(nats.url, user=USER, password=PASSWORD) as client:
        manager = client.jsm()
        for stream in await manager.streams_info():
            await manager.delete_stream(stream.config.name)
        if subjects:
            await manager.add_stream(AGENTS_STREAM, subjects=list(subjects))


OURS = ("akosha.session.>", "akosha.sync.>", "akosha.ingest.>", "akosha.archive.>")


async def test_without_a_nats_url_the_bus_check_is_skipped(run):
    one(await run(nats_checks.nats), SKIPPED)


async def test_a_working_bus_is_reported_and_nothing_is_published(bus, nats):
    await with_stream(nats, *OURS)
    assert re.search(r", version \d+\.\d+\.\d+: .*all needed permissions are granted", one(await bus(), OK).found)
    minimal = one(await bus("minimal"), ERROR)
    assert "no permission to subscribe to akosha.progress.laptop" in minimal.found, "and nothing else is missing"
    async with connected(nats.url, user=USER, password=PASSWORD) as client:
        info = await client.jetstream().stream_info("AKOSHA_SYNC")
        assert (info.state.messages, info.state.consumer_count) == (0, 0)


async def test_a_missing_stream_is_a_warning_and_is_not_created(bus, nats):
    await with_stream(nats)
    assert "akosha-agent run" in one(await bus(), WARNING).hint
    assert "$JS.API.STREAM.CREATE.AKOSHA_SYNC" in one(await bus("reader"), ERROR).hint
    async with connected(nats.url, user=USER, password=PASSWORD) as client:
        assert await client.jsm().streams_info() == []


async def test_a_stream_without_the_needed_subjects_is_an_error_with_the_command_that_fixes_it(bus, nats):
    await with_stream(nats, "akosha.session.>")
    found = one(await bus(), ERROR)
    assert found.hint.startswith("nats stream edit AKOSHA_SYNC --subjects ")


async def test_what_a_stream_lacks_is_a_warning_with_one_command_that_mends_all(bus, nats):
    await with_stream(nats, *OURS)
    poor = {"allow_direct": False, "max_consumers": -1, "duplicate_window": 120, "max_bytes": 1000, "max_msgs": 50}
    fields = {"allow_direct": lambda _: True, "max_consumers": int, "max_bytes": int, "max_msgs": int}
    async with connected(nats.url, user=USER, password=PASSWORD) as client:
        manager = client.jsm()
        config = (await manager.stream_info("AKOSHA_SYNC")).config
        await manager.update_stream(replace(config, **poor, discard="new"))
        found = one(await bus(), WARNING)
        assert "allows no more consumers than the server's default of 1,000" in found.found
        assert found.hint.startswith("nats stream edit AKOSHA_SYNC --allow-direct --discard=old --max-consumers=10000 ")
        options = {name.replace("-", "_"): value for name, value in re.findall(r"--([a-z-]+)=?(\S*)", found.hint)}
        assert options.pop("dupe_window") == "10m"
        mended = {name: fields.get(name, str)(value) for name, value in options.items()}
        config = (await manager.stream_info("AKOSHA_SYNC")).config
        await manager.update_stream(replace(config, **mended, duplicate_window=600))
    one(await bus(), OK)


async def test_the_account_of_a_system_needs_no_permission_for_the_stream_itself(run, tmp_path):
    with running_hub(tmp_path / "hub") as hub:
        settings = {"agent_nats_url": hub.url, "agent_nats_nkey_seed": KEYS["LAPTOP"].seed, "system_id": "laptop"}
        assert "JetStream not enabled" in one(await run(nats_checks.nats, **settings), ERROR).found
        async with connected(hub.url, nkeys_seed_str=KEYS["ADMIN"].seed) as admin:
            await admin.jetstream().add_stream(AGENTS_STREAM, subjects=list(OURS))
        assert "may not examine the stream" in one(await run(nats_checks.nats, **settings), OK).found


async def test_missing_publish_and_subscribe_permissions_are_errors(bus, nats):
    await with_stream(nats, *OURS)
    hint = one(await bus("listener"), ERROR).hint
    assert "publish akosha.sync.laptop.requested.cloud, akosha.sync.laptop.succeeded in" in hint
    deaf = one(await bus("deaf", step_seconds=0.5), ERROR)
    assert "_inbox" in deaf.found.lower()
    assert "_INBOX.laptop.>" in deaf.hint
    assert "does not report permissions" in one(await bus("silent"), OK).found


async def test_an_unreachable_or_refusing_server_is_an_error_and_one_of_two_a_warning(bus, nats):
    await with_stream(nats, *OURS)
    refused = one(await bus(agent_nats_password="wrong"), ERROR)
    assert "akosha_agent_nats_user" in refused.hint
    one(await bus(agent_nats_url="nats://127.0.0.1:9"), ERROR)
    assert sorted(levels(await bus(agent_nats_url=f"nats://127.0.0.1:9,{nats.url}"))) == [OK, WARNING]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [("max_streams: 1", "the account has 1 of 1 streams"), ("max_file: 1048576", "the account has 1048576")],
)
async def test_a_stream_that_cannot_be_created_is_an_error_without_a_hint_to_start_the_agent(
    run, tmp_path, limits, expected
):
    user = f"users: [{{user: {USER}, password: {PASSWORD}}}]"
    with running_nats(tmp_path, config=f"accounts {{ A {{ jetstream {{ {limits} }}, {user} }} }}") as server:
        async with connected(server.url, user=USER, password=PASSWORD) as client:
            await client.jsm().add_stream(name="OTHER", subjects=["other"], max_bytes=1000)
        where = {"agent_nats_url": server.url, "agent_nats_user": USER, "agent_nats_password": PASSWORD}
        found = one(await run(nats_checks.nats, **where), ERROR)
    assert expected in found.found
    assert "operator" in found.hint
    assert "start" not in found.hint


async def test_a_running_agent_without_the_stream_gets_no_hint_to_start_the_agent(bus, nats, directories, tmp_path):
    await with_stream(nats)
    home = make_context(directories, tmp_path).home
    home.prepare()
    ledger = await home.open_ledger()
    await ledger.note(BUS, "memory: NATS refuses to make the stream")
    await ledger.aclose()
    with home.lock("run"):
        found = one(await bus(), ERROR)
    assert "NATS refuses to make the stream" in found.found
    assert "start" not in found.hint


async def test_a_server_without_jetstream_is_an_error(run, tmp_path):
    with running_nats(tmp_path, jetstream=False) as server:
        found = one(await run(nats_checks.nats, agent_nats_url=server.url), ERROR)
    assert "JetStream" in found.found + found.hint


# The running agent, hook and service.


@contextlib.contextmanager
def holding_state_directory(state, command="run"):
    """Hold the lock of the state directory as an agent does."""
    with StateDirectory(state).lock(command):
        yield


@contextlib.contextmanager
def answering(state, answer):
    """Listen at the control socket and answer every request with these bytes; if they are empty, do not answer."""
    # A socket bound through the descriptor may have a path of any length; those of pytest are long.
    folder = os.open(state, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(f"/proc/self/fd/{folder}/control.sock" if sys.platform == "linux" else f"{state}/control.sock")
        os.close(folder)
        server.listen()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65_536)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        if answer:
            thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            if answer:
                thread.join(20)


def http(status, body, version=__version__):
    head = f"HTTP/1.1 {status} X\r\nServer: akosha-agent/{version}\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"{head}{body}".encode()


async def test_no_agent_is_a_warning_unless_a_sync_is_running(run, directories):
    assert "akosha-agent service install" in one(await run(agent_checks.agent), WARNING).hint
    with holding_state_directory(directories["agent_state_dir"], "sync"):
        assert "(sync)" in one(await run(agent_checks.agent), OK).found


async def test_a_responsive_agent_is_ok_unless_it_is_stuck(run, directories):
    settings = Settings(**directories)
    with holding_state_directory(settings.agent_state_dir):
        agent_service = FakeAgentService()
        async with serve(
            agent_service, settings, state_dir=settings.agent_state_dir, metrics=no_metrics, limits=Limits()
        ):
            found = one(await run(agent_checks.agent), OK)
            assert f"({'run'})" in found.found
            assert __version__ in found.found
            agent_service.stuck = {"watcher": "it has not looked for 300 s"}
            assert "watcher: it has not looked for 300 s" in one(await run(agent_checks.agent), ERROR).found


async def test_an_agent_without_a_socket_or_a_valid_response_or_of_another_version_is_reported(run, directories):
    state = directories["agent_state_dir"]
    with holding_state_directory(state):
        assert "no control socket" in one(await run(agent_checks.agent), WARNING).found
        with answering(state, b""):
            silent = one(await run(agent_checks.agent, step_seconds=0.3), ERROR)
            assert f"process {os.getpid()}" in silent.hint
        (state / "control.sock").unlink()
        with answering(state, b"SSH-2.0-no http\r\n\r\n"):
            assert "does not answer" in one(await run(agent_checks.agent), ERROR).found
        (state / "control.sock").unlink()
        with answering(state, http(200, "{}", "0.0.1")):
            old = one(await run(agent_checks.agent), WARNING)
            assert "version 0.0.1" in old.found
            assert old.hint == "akosha-agent service restart"
        # Nothing listens: the socket of a killed agent remains while another command holds the directory.
        one(await run(agent_checks.agent), ERROR)


async def test_a_socket_with_a_path_too_long_for_an_address_is_reached(run, tmp_path):
    state = tmp_path / ("long" * 30)
    state.mkdir(mode=0o700)
    with holding_state_directory(state), answering(state, http(200, "{}")):
        one(await run(agent_checks.agent, agent_state_dir=state), OK)


async def test_a_hook_that_is_missing_switched_off_or_damaged_is_reported(run, tmp_path):
    file = tmp_path / ".claude" / "settings.json"
    assert one(await run(agent_checks.hook), WARNING).hint == "akosha-agent hook install"
    file.parent.mkdir()
    file.write_text('{"hooks": [')
    assert str(file) in one(await run(agent_checks.hook), ERROR).hint
    file.write_text('{"hooks": {"SessionEnd": []}}')
    one(await run(agent_checks.hook), WARNING)


async def test_a_hook_is_ok_if_its_program_exists_and_uses_the_state_directory_of_the_agent(run, directories, tmp_path):
    file, state = tmp_path / ".claude" / "settings.json", directories["agent_state_dir"]
    file.parent.mkdir()

    def install(program, folder, **more):
        settings = ClaudeSettings(file, dict(more))
        settings.insert(HookCommand((str(program),), {"--state-dir": str(folder)}))
        file.write_bytes(settings.render())

    program = tmp_path / "bin" / "akosha-agent"
    program.parent.mkdir()
    install(program, state)
    assert str(program) in one(await run(agent_checks.hook), ERROR).found
    program.touch(mode=0o755)
    one(await run(agent_checks.hook), OK)
    install(program, tmp_path / "elsewhere")
    assert str(tmp_path / "elsewhere") in one(await run(agent_checks.hook), ERROR).found
    install(program, state, disableAllHooks=True)
    assert "disableAllHooks" in one(await run(agent_checks.hook), WARNING).found


async def test_the_hook_of_the_plugin_is_ok_if_it_reaches_the_agent_and_a_second_hook_is_named(
    run, directories, tmp_path
):
    file, state = tmp_path / ".claude" / "settings.json", directories["agent_state_dir"]
    program = tmp_path / ".local" / "bin" / "akosha-agent"
    program.parent.mkdir(parents=True)
    program.touch(mode=0o755)
    file.parent.mkdir()
    file.write_text('{"enabledPlugins": {"akosha-agent@akosha": true}}')
    assert f"but the agent reads {state}" in one(await run(agent_checks.hook), ERROR).found
    config = tmp_path / ".config" / "akosha-agent" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"agent_state_dir: {state}\n")
    found = one(await run(agent_checks.hook), OK)
    assert found.found == "installed by the plugin akosha-agent@akosha"
    settings = ClaudeSettings.read(file)
    settings.insert(HookCommand(("/gone/akosha-agent",), {"--state-dir": "/elsewhere"}))
    file.write_bytes(settings.render())
    assert one(await run(agent_checks.hook), OK).detail == "akosha-agent hook uninstall removes it from there"


RUNS = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}


@LINUX
async def test_a_service_is_ok_if_it_is_installed_enabled_and_running(run, tmp_path):
    """The unit is real; `systemctl` is a script with the output that the test chooses."""
    tools, unit = tmp_path / "tools", Systemd(tmp_path, Runner({}, say=print))
    tools.mkdir()
    for name, line in (("systemctl", f"cat {tools}/shown"), ("loginctl", "echo yes")):
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    environ = {"PATH": f"{tools}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": str(tmp_path)}

    def says(**shown):
        (tools / "shown").write_text("".join(f"{name}={value}\n" for name, value in (RUNS | shown).items()))

    says()
    assert "install" in one(await run(agent_checks.service, environ=environ), WARNING).hint
    program = tmp_path / "akosha-agent"
    program.touch(mode=0o755)
    unit.file.parent.mkdir(parents=True)
    unit.file.write_text(unit.render(ServiceSpec((str(program), "run"))))
    says(MainPID=os.getpid(), ExecMainStartTimestamp="Sat 2026-11-21 18:36:15 UTC")
    found = one(await run(agent_checks.service, environ=environ), OK)
    assert "systemd" in found.found
    says(MainPID=os.getpid(), UnitFileState="disabled")
    one(await run(agent_checks.service, environ=environ), WARNING)
    says(MainPID=0, ActiveState="failed", SubState="failed")
    found = one(await run(agent_checks.service, environ=environ), ERROR)
    assert "akosha-agent service start" in found.hint
    says(MainPID=os.getpid())
    program.unlink()
    assert str(program) in one(await run(agent_checks.service, environ=environ), WARNING).found
    (tools / "systemctl").write_text("#!/bin/sh\necho no bus >&2\nexit 1\n")
    assert "no bus" in one(await run(agent_checks.service, environ=environ), ERROR).found
