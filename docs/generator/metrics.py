"""The metrics of `GET /metrics`: an empty meter's exposition."""

from prometheus_client.parser import text_string_to_metric_families

from agent.adapters.prometheus_meter import BUSES, KINDS, METHODS, TRIGGERS, WATCHERS, PrometheusMeter
from agent.ports.metrics import LedgerMetrics, MethodMetrics, MetricsSnapshot
from docs.generator.markdown import code, codes, page, table

INTRODUCTION = f"""\
[Metrics](../metrics.md) explains how to scrape them, with queries. Values of the labels:

- `method`: {codes(METHODS)}; `none` for a request that was refused at once. A fallback that was never used has no
  gauges.
- `outcome`: `succeeded`, `skipped` (there was nothing to deliver) or `failed`.
- `triggered_by`: {codes(TRIGGERS)} or `other`.
- `kind`: {codes(KINDS)} (all named graphs together).
- `bus`: {codes(BUSES)}. `mode`: {codes(WATCHERS)}.

On Linux the standard `process_*` metrics (CPU, memory, file descriptors, start time) are exported too."""


def text() -> str:
    """Return the page."""
    rows = [(code(name), kind, codes(labels), meaning) for name, kind, labels, meaning in metrics()]
    return page(
        "Metrics reference",
        "agent/adapters/prometheus_meter.py",
        INTRODUCTION,
        table(("metric", "type", "labels", "meaning"), rows),
    )


def metrics() -> list[tuple[str, str, list[str], str]]:
    """Return name, type, labels and help of each metric of the agent, in the order of the exposition."""
    method = MethodMetrics(method="cloud", last_success=0, pending_databases=0, failures=0, memories={"delivered": 0})
    ledger = LedgerMetrics(methods=(method,), results_waiting=0, bus="", watcher="", ledger_bytes=0)
    exposition = PrometheusMeter(version="-", python="-").exposition(
        MetricsSnapshot(ready=True, stuck=0, ledger=ledger)
    )
    return [
        (
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            list(dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")),
            family.documentation,
        )
        for family in text_string_to_metric_families(exposition.decode())
        if not family.name.startswith("process_")
    ]
