"""The Prometheus meter: each result counts once, and labels have few values."""

import threading
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.adapters.prometheus_meter import CONTENT_TYPE, PrometheusMeter
from agent.application.monitoring.metrics import ledger_metrics
from agent.application.monitoring.status import DatabaseStatus, Status, TargetStatus
from agent.application.sync.results import _raw_bytes_sent
from agent.domain.events import MethodError, SyncFailed, SyncSkipped, SyncSucceeded
from agent.ports import MemoryCounts, Meter, NoMeter
from agent.ports.metrics import LedgerMetrics, MethodMetrics, MetricsSnapshot
from tests.support.values import manifest, patched_part

AT = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)
HEALTHY = MetricsSnapshot(ready=True, stuck=0, ledger=LedgerMetrics())
COMMON = {"id": "e", "time": AT, "system_id": "mac", "request_id": "r"}


def succeeded(method="cloud", *, sent=100, seconds=2.0, triggered_by="file_change"):
    return SyncSucceeded(
        **COMMON, method=method, success=True, bytes_transferred=sent, duration_seconds=seconds,
        triggered_by=triggered_by, incomplete={},
    )  # fmt: skip


def failed(method="http", triggered_by="manual"):
    errors = (MethodError(method=method, error="no"),) if method else ()
    return SyncFailed(**COMMON, method=method, success=False, triggered_by=triggered_by, errors=errors)


def skipped(method="cloud", triggered_by="startup"):
    return SyncSkipped(**COMMON, method=method, success=True, triggered_by=triggered_by, why="unchanged")


@pytest.fixture
def meter():
    return PrometheusMeter(version="1.2.3", python="3.11.9")


def shown(meter, snapshot=HEALTHY):
    text = meter.exposition(snapshot).decode()
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(name, **labels):
    return (f"akosha_agent_{name}", *sorted(labels.items()))


def test_a_success_counts_its_bytes_and_time(meter):
    meter.outcome(succeeded(sent=100, seconds=2.0), raw_bytes=400)
    meter.outcome(succeeded(sent=50, seconds=400.0), raw_bytes=60)
    now = shown(meter)
    assert now[of("syncs_total", method="cloud", outcome="succeeded", triggered_by="file_change")] == 2
    assert now[of("sync_raw_bytes_total", method="cloud")] == 460
    assert now[of("sync_sent_bytes_total", method="cloud")] == 150
    assert now[of("sync_duration_seconds_sum", method="cloud")] == 402
    assert now[of("sync_duration_seconds_bucket", method="cloud", le="1.0")] == 0
    assert now[of("sync_duration_seconds_bucket", method="cloud", le="2.5")] == 1
    assert now[of("sync_duration_seconds_bucket", method="cloud", le="900.0")] == 2


def test_results_without_delivery_count_no_bytes_and_no_time(meter):
    meter.outcome(skipped())
    meter.outcome(failed())
    meter.outcome(failed(method=""))
    meter.retried("http")
    now = shown(meter)
    assert now[of("syncs_total", method="cloud", outcome="skipped", triggered_by="startup")] == 1
    assert now[of("syncs_total", method="http", outcome="failed", triggered_by="manual")] == 1
    assert now[of("syncs_total", method="none", outcome="failed", triggered_by="manual")] == 1
    assert now[of("retries_total", method="http")] == 1
    assert now[of("sync_duration_seconds_count", method="cloud")] == 0
    assert now[of("sync_sent_bytes_total", method="http")] == 0


def test_all_series_start_at_0_so_that_the_first_event_is_an_increase(meter):
    before = shown(meter)
    for method in ("cloud", "http"):
        for trigger in ("manual", "session_end", "file_change", "startup", "retry", "remote"):
            for result in (succeeded(method, triggered_by=trigger), failed(method, trigger), skipped(method, trigger)):
                meter.outcome(result)
        meter.retried(method)
    for database in ("reflection", "knowledge_graph", "knowledge_graph_mine"):
        meter.snapshot(database, 0.1, 10)
    after = shown(meter)
    assert set(after) == set(before)
    counted = {key for key in after if key[0].endswith("_total") and not key[0].startswith("process_")}
    assert {before[key] for key in counted} == {0}
    assert 0 not in {after[key] for key in counted if "raw_bytes" not in key[0]}


def test_user_chosen_names_add_no_series(meter):
    before = set(shown(meter))
    for number in range(50):
        meter.snapshot(f"knowledge_graph_{number}", 0.3, 1000)
        meter.outcome(succeeded(triggered_by=f"whim-{number}"))
    after = shown(meter)
    assert set(after) - before == {of("syncs_total", method="cloud", outcome="succeeded", triggered_by="other")}
    assert after[of("snapshot_duration_seconds_count", kind="named_graph")] == 50
    assert after[of("snapshot_bytes_total", kind="named_graph")] == 50_000


def test_threads_lose_no_count(meter):
    def work():
        for _ in range(200):
            meter.retried("cloud")
            meter.snapshot("reflection", 0.01, 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = shown(meter)
    assert now[of("retries_total", method="cloud")] == 800
    assert now[of("snapshot_duration_seconds_count", kind="reflection")] == 800


def test_a_snapshot_is_exposed_and_not_kept(meter):
    methods = (
        MethodMetrics(
            method="cloud", last_success=1748779200.0, pending_databases=2, failures=3,
            memories={"delivered": 5, "waiting": 1, "refused": 0},
        ),
    )  # fmt: skip
    ledger = LedgerMetrics(methods=methods, results_waiting=4, bus="nats", watcher="polling", ledger_bytes=8192)
    now = shown(meter, MetricsSnapshot(ready=False, stuck=2, ledger=ledger))
    assert now[of("last_success_timestamp_seconds", method="cloud")] == 1748779200.0
    assert now[of("pending_databases", method="cloud")] == 2
    assert now[of("target_failures", method="cloud")] == 3
    assert now[of("memories", method="cloud", state="delivered")] == 5
    assert (now[of("results_waiting")], now[of("ledger_bytes")]) == (4, 8192)
    assert (now[of("bus_connected", bus="nats")], now[of("bus_connected", bus="memory")]) == (1, 0)
    assert [now[of("watcher_mode", mode=mode)] for mode in ("native", "polling", "waiting")] == [0, 1, 0]
    assert (now[of("ready")], now[of("stuck")], now[of("scrape_error")]) == (0, 2, 0)
    assert of("pending_databases", method="cloud") not in shown(meter)


def test_if_the_ledger_is_unreadable_other_metrics_and_the_error_are_exposed(meter):
    now = shown(meter, MetricsSnapshot(ready=True, stuck=1, ledger=None))
    assert (now[of("scrape_error")], now[of("ready")], now[of("stuck")]) == (1, 1, 1)
    assert of("results_waiting") not in now
    assert now[of("retries_total", method="cloud")] == 0


def test_the_exposition_names_the_version_and_is_small(meter):
    text = meter.exposition(HEALTHY)
    assert b'akosha_agent_build_info{python="3.11.9",version="1.2.3"} 1.0' in text
    assert b"_created" not in text
    assert len(text) < 30_000
    assert CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize(
    ("notes", "bus", "watcher"),
    [
        ({"bus": "nats: tls://nats.lan:4222", "watcher": "native"}, "nats", "native"),
        ({"bus": "memory: in this process", "watcher": "polling (nfs does not report changes)"}, "memory", "polling"),
        ({"bus": "waiting: no answer", "watcher": "waiting for /data (it is closed)"}, "waiting", "waiting"),
        ({}, "", ""),
    ],
)
def test_the_status_is_converted_to_metrics(notes, bus, watcher):
    target = TargetStatus(
        method="cloud", endpoint="", bucket="b",
        databases=tuple(
            DatabaseStatus(name=name, state="owed", pending=pending, size=1)
            for name, pending in (("reflection", True), ("knowledge_graph", False), ("knowledge_graph_x", True))
        ),
        newest_upload_id=None, last_success=AT, failures=7, next_try=None, error="",
        memories=MemoryCounts(delivered=9, waiting={"no embedding": 2, "no tool": 3}, refused={"odd": 1}),
    )  # fmt: skip
    status = Status(
        system_id="mac", agent_id="a", route=("cloud",), targets=(target,), pending=(), notes=notes, results_waiting=2
    )
    assert ledger_metrics(status, ledger_bytes=10) == LedgerMetrics(
        methods=(
            MethodMetrics(
                method="cloud", last_success=AT.timestamp(), pending_databases=2, failures=7,
                memories={"delivered": 9, "waiting": 5, "refused": 1},
            ),
        ),
        results_waiting=2, bus=bus, watcher=watcher, ledger_bytes=10,
    )  # fmt: skip


def test_the_null_meter_implements_the_protocol():
    meter: Meter = NoMeter()
    meter.outcome(succeeded())
    meter.retried("cloud")
    meter.snapshot("reflection", 1.0, 1)


def test_a_patch_counts_as_raw_bytes_with_its_own_size():
    part = patched_part([0, 1, 2])
    assert _raw_bytes_sent(replace(manifest(0, reflection=0), parts=(part,))) == part.layers[-1].raw_size
