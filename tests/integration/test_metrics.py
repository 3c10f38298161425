"""The metrics of a real agent, and that the reference, queries and alert rules use exactly these."""

import asyncio
import re
import uuid
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.bootstrap import agent as agent_bootstrap, home as home_bootstrap, methods
from agent.bootstrap.metrics import metering
from agent.domain.errors import StateError, StoreError
from agent.domain.events import SyncAsked
from agent.settings import Settings
from docs.generator.metrics import metrics as documented_metrics
from tests.support.control_api import FakeAgentService
from tests.support.faulty_store import FaultyStore
from tests.support.machine import NO_AKOSHA
from tests.support.memory_store import MemoryStore
from tests.support.session_buddy import create

ROOT = Path(__file__).parents[2]
OUTCOMES = ("succeeded", "skipped", "failed")
DEPLOY = ROOT / "deploy" / "prometheus"


def families(page):
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


def value(page, name, **labels):
    return next(
        sample.value
        for family in families(page).values()
        for sample in family.samples
        if (sample.name, sample.labels) == (f"akosha_agent_{name}", labels)
    )


@pytest.fixture
async def sync_and_scrape(tmp_path, monkeypatch):
    """Return a function that syncs to a directory, without Akosha, and returns the metrics page."""
    create(tmp_path / "data", commits=3)
    taker = home_bootstrap.DuckdbSnapshotTaker
    monkeypatch.setattr(home_bootstrap, "DuckdbSnapshotTaker", lambda *a, **how: taker(*a, **how | {"verify": False}))
    settings = Settings(
        cloud_endpoint=(tmp_path / "bucket").as_uri(),
        http_endpoint=NO_AKOSHA,
        system_id="laptop",
        agent_data_dir=tmp_path / "data",
        agent_state_dir=tmp_path / "state",
        max_retries=1,
        retry_backoff_seconds=0.05,
    )
    identity = await asyncio.to_thread(home_bootstrap.Home.of(settings).prepare)
    counts = metering()

    async def sync(*, enabled=True, **wishes):
        home = home_bootstrap.Home.of(settings.model_copy(update={"sync_enabled": enabled}))
        ask = SyncAsked(id=str(uuid.uuid4()), time=home.clock.now(), system_id="laptop", **wishes)
        async with await agent_bootstrap.build(home, identity, meter=counts.meter) as agent, asyncio.timeout(60):
            counts.ledger_bytes = agent.ledger.size
            await agent.once(ask)
            return (await counts.exposition(agent.agent_service))[0]

    return sync


async def test_a_running_agent_exports_its_syncs_and_state(sync_and_scrape):
    page = await sync_and_scrape()
    assert value(page, "syncs_total", method="cloud", outcome="succeeded", triggered_by="manual") == 1
    assert value(page, "sync_duration_seconds_count", method="cloud") == 1
    raw, sent = (value(page, f"sync_{name}_bytes_total", method="cloud") for name in ("raw", "sent"))
    assert 0 < sent < raw
    for kind in ("reflection", "knowledge_graph"):
        assert value(page, "snapshot_duration_seconds_count", kind=kind) == 1
    assert value(page, "last_success_timestamp_seconds", method="cloud") > 1_700_000_000
    assert value(page, "pending_databases", method="cloud") == 0
    assert value(page, "ledger_bytes") > 0
    assert value(page, "scrape_error") == 0

    page = await sync_and_scrape()  # nothing has changed
    assert value(page, "syncs_total", method="cloud", outcome="skipped", triggered_by="manual") == 1
    assert value(page, "sync_raw_bytes_total", method="cloud") == raw
    page = await sync_and_scrape(method="http", enable_fallback=False)
    assert value(page, "syncs_total", method="http", outcome="failed", triggered_by="manual") == 1


async def test_a_retry_is_counted_separately_and_its_request_once(sync_and_scrape, monkeypatch):
    store = FaultyStore(MemoryStore())
    monkeypatch.setattr(methods, "object_store", lambda *_: store)
    store.fail("put", StoreError("503", transient=True), key="manifest.json")
    page = await sync_and_scrape()
    assert value(page, "retries_total", method="cloud") == 1
    assert value(page, "syncs_total", method="cloud", outcome="succeeded", triggered_by="manual") == 1
    assert value(page, "syncs_total", method="cloud", outcome="failed", triggered_by="manual") == 0


async def test_an_upload_with_a_lost_response_is_counted_once(sync_and_scrape, monkeypatch):
    store = FaultyStore(MemoryStore())
    monkeypatch.setattr(methods, "object_store", lambda *_: store)
    store.fail("put", StoreError("the answer was lost", transient=True), key="manifest.json", after=True)
    page = await sync_and_scrape()
    outcomes = [value(page, "syncs_total", method="cloud", outcome=o, triggered_by="manual") for o in OUTCOMES]
    assert outcomes == [1, 0, 0]


async def test_a_request_refused_at_once_is_counted_as_a_failure_without_a_method(sync_and_scrape):
    page = await sync_and_scrape(enabled=False)
    assert value(page, "syncs_total", method="none", outcome="failed", triggered_by="manual") == 1


async def test_an_unreadable_ledger_does_not_hide_the_other_metrics():
    agent_service, counts = FakeAgentService(), metering()
    agent_service.stuck = {"watch": "it has not looked for 300 s"}
    agent_service.error = StateError("the ledger is damaged")
    page, kind = await counts.exposition(agent_service)
    assert (value(page, "scrape_error"), value(page, "stuck"), value(page, "ready")) == (1, 1, 1)
    assert kind.startswith("text/plain; version=0.0.4")


@pytest.fixture
async def exported():
    """Return name -> (type, labels) of the exported metrics, for a service with one target."""
    counts = metering()

    async def size():
        return 4096

    counts.ledger_bytes = size
    page, _ = await counts.exposition(FakeAgentService())
    return {
        f"{name}_total" if family.type == "counter" else name: (
            family.type,
            {label for sample in family.samples for label in sample.labels} - {"le"},
        )
        for name, family in families(page).items()
        if not name.startswith("process_")
    }


async def test_the_reference_has_exactly_the_exported_metrics_with_types_and_labels(exported):
    assert {name: (kind, set(labels)) for name, kind, labels, _ in documented_metrics()} == exported


def test_exported_metrics_follow_the_conventions_of_prometheus(exported):
    for name, (kind, labels) in exported.items():
        assert re.fullmatch(r"akosha_agent(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|milliseconds|kb|mb|minutes|percent)\b", name)
        assert labels <= {"method", "outcome", "triggered_by", "kind", "bus", "mode", "state", "version", "python"}


def _named(text):
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"\bakosha_agent_\w+", text)}


def test_the_documented_queries_use_exported_metrics(exported):
    assert _named((ROOT / "docs" / "metrics.md").read_text().partition("PromQL")[2]) <= set(exported)


def test_the_alert_rules_are_valid_and_use_exported_metrics(exported):
    document = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    (group,) = document["groups"]
    rules = group["rules"]
    assert [rule["alert"] for rule in rules] == ["AkoshaMemoriesNotSafe", "AkoshaAgentNotAtWork"]
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert _named(rule["expr"])
        assert _named(rule["expr"]) <= set(exported)
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert label in {"instance", "method"}
        assert rule["expr"].count("(") == rule["expr"].count(")")
        readme = (DEPLOY / "README.md").read_text()
        assert rule["alert"] in readme


def test_the_scrape_configuration_uses_loopback_and_the_job_name_of_the_rules():
    document = yaml.safe_load((DEPLOY / "scrape.yml").read_text())
    (job,) = document["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8688"]}]
    assert "metrics_path" not in job  # /metrics is the default
    assert f'up{{job="{job["job_name"]}"}}' in (DEPLOY / "alerts.yml").read_text()
    assert document["rule_files"] == ["alerts.yml"]
