"""A Meter that Prometheus can scrape. The help texts are the documentation of the metrics (docs/generator).

Label values come from fixed sets (methods, outcomes, triggers, kinds of databases), never from names that users choose.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.domain import routing
from agent.domain.databases import KNOWLEDGE_GRAPH, REFLECTIONS
from agent.domain.events import SyncResult, SyncSkipped, SyncSucceeded
from agent.ports.metrics import LedgerMetrics, MetricsSnapshot

PREFIX = "akosha_agent"
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

SUCCEEDED, SKIPPED, FAILED = "succeeded", "skipped", "failed"
NAMED_GRAPH = "named_graph"
NONE, OTHER = "none", "other"
"""The method of a request that was refused at once, and any unknown trigger."""

METHODS = (routing.CLOUD, routing.HTTP)
TRIGGERS = (routing.MANUAL, routing.SESSION_END, routing.FILE_CHANGE, routing.STARTUP, routing.RETRY, routing.REMOTE)
KINDS = (REFLECTIONS, KNOWLEDGE_GRAPH, NAMED_GRAPH)
BUSES = ("memory", "nats")
WATCHERS = ("native", "polling", "waiting")

SYNC_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""An unchanged small database takes 0.1 s, the documented 42 MB at most 30 s; the time limit is 300 s."""

SNAPSHOT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""60 MB take about 0.3 s, a gigabyte about 10 s."""


class PrometheusMeter:
    """`agent.ports.Meter` in its own registry. All series start at 0, so that rates work from the first event."""

    def __init__(self, *, version: str, python: str) -> None:
        # The `_created` series would double the response, and scrapers know when a series started.
        disable_created_metrics()  # type: ignore[no-untyped-call] # the only untyped function of the library
        self._registry = registry = CollectorRegistry()
        Info(f"{PREFIX}_build", "Version of the agent and of Python; the value is 1.", registry=registry).info(
            {"version": version, "python": python}
        )
        self._syncs = Counter(
            f"{PREFIX}_syncs",
            "Requests with a result, by the last method that was tried.",
            ["method", "outcome", "triggered_by"],
            registry=registry,
        )
        self._raw = Counter(
            f"{PREFIX}_sync_raw_bytes",
            "Size of the database files sent, before compression.",
            ["method"],
            registry=registry,
        )
        self._sent = Counter(
            f"{PREFIX}_sync_sent_bytes",
            "Bytes sent by successful syncs.",
            ["method"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}_sync_duration_seconds",
            "Duration of successful syncs, including the first comparison of the files.",
            ["method"],
            buckets=SYNC_SECONDS,
            registry=registry,
        )
        self._retries = Counter(
            f"{PREFIX}_retries",
            "Failed attempts that were followed by another attempt of the same request.",
            ["method"],
            registry=registry,
        )
        self._snapshots = Histogram(
            f"{PREFIX}_snapshot_duration_seconds",
            "Time taken to copy, hash and verify a database.",
            ["kind"],
            buckets=SNAPSHOT_SECONDS,
            registry=registry,
        )
        self._snapshot_bytes = Counter(
            f"{PREFIX}_snapshot_bytes", "Size of the databases copied.", ["kind"], registry=registry
        )
        ProcessCollector(registry=registry)
        self._create_series()

    def _create_series(self) -> None:
        for method in METHODS:
            for metric in (self._raw, self._sent, self._seconds, self._retries):
                metric.labels(method)
            for outcome in (SUCCEEDED, SKIPPED, FAILED):
                for trigger in TRIGGERS:
                    self._syncs.labels(method, outcome, trigger)
        for kind in KINDS:
            self._snapshots.labels(kind)
            self._snapshot_bytes.labels(kind)

    def outcome(self, result: SyncResult, *, raw_bytes: int = 0) -> None:
        method = result.method if result.method in METHODS else NONE
        outcome = _outcome(result)
        trigger = result.triggered_by if result.triggered_by in TRIGGERS else OTHER
        self._syncs.labels(method, outcome, trigger).inc()
        if outcome == SUCCEEDED:
            self._raw.labels(method).inc(max(raw_bytes, 0))
            self._sent.labels(method).inc(max(result.bytes_transferred, 0))
            self._seconds.labels(method).observe(result.duration_seconds)

    def retried(self, method: str) -> None:
        self._retries.labels(method).inc()

    def snapshot(self, database: str, seconds: float, raw_bytes: int) -> None:
        kind = database if database in KINDS else NAMED_GRAPH
        self._snapshots.labels(kind).observe(seconds)
        self._snapshot_bytes.labels(kind).inc(max(raw_bytes, 0))

    def exposition(self, snapshot: MetricsSnapshot) -> bytes:
        """Return all metrics in Prometheus' text format (CONTENT_TYPE). Reads /proc: call it in a thread."""
        return generate_latest(_Page(self._registry, snapshot))


class _Page(Collector):
    """The counters and the values of one snapshot. It keeps no state: scrapes do not affect each other."""

    def __init__(self, counters: CollectorRegistry, snapshot: MetricsSnapshot) -> None:
        self._counters, self._snapshot = counters, snapshot

    def collect(self) -> Iterable[Metric]:
        yield from self._counters.collect()
        yield _gauge("ready", "1: the agent watches the databases and receives requests.", float(self._snapshot.ready))
        yield _gauge("stuck", "Number of components that are stuck.", float(self._snapshot.stuck))
        ledger = self._snapshot.ledger
        yield _gauge(
            "scrape_error", "1: the ledger cannot be read, and the metrics from it are missing.", float(ledger is None)
        )
        if ledger is not None:
            yield from _ledger_gauges(ledger)
            yield from _target_gauges(ledger)


def _ledger_gauges(ledger: LedgerMetrics) -> Iterator[Metric]:
    yield _gauge("results_waiting", "Results that the bus has not confirmed.", ledger.results_waiting)
    if ledger.ledger_bytes is not None:
        yield _gauge("ledger_bytes", "Size of the ledger on disk.", ledger.ledger_bytes)
    bus = _labelled("bus_connected", "1: events use this bus. 0 for all: events wait for NATS.", "bus")
    for name in BUSES:
        bus.add_metric([name], float(ledger.bus == name))
    yield bus
    mode = _labelled("watcher_mode", "1: how the databases are watched; waiting: they do not exist.", "mode")
    for name in WATCHERS:
        mode.add_metric([name], float(ledger.watcher == name))
    yield mode


def _target_gauges(ledger: LedgerMetrics) -> Iterator[Metric]:
    success = _labelled(
        "last_success_timestamp_seconds",
        "Time of the last sync after which the method's target lacked nothing; 0: never.",
        "method",
    )
    pending = _labelled("pending_databases", "Databases that the method's target lacks.", "method")
    failures = _labelled("target_failures", "Failed requests to the method's target since its last success.", "method")
    memories = _labelled(
        "memories",
        "Memories that the method's target has (delivered), that wait (waiting), or that it refused (refused).",
        "method",
        "state",
    )
    for method in ledger.methods:
        success.add_metric([method.method], method.last_success)
        pending.add_metric([method.method], method.pending_databases)
        failures.add_metric([method.method], method.failures)
        for state, count in method.memories.items():
            memories.add_metric([method.method, state], count)
    yield from (success, pending, failures, memories)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _labelled(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


def _outcome(result: SyncResult) -> str:
    if isinstance(result, SyncSucceeded):
        return SUCCEEDED
    return SKIPPED if isinstance(result, SyncSkipped) else FAILED
