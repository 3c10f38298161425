"""The databases as they lie there, and the ledger."""

from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Finding, error, ok, skipped, warning, wrong
from agent.entrypoints.results import human_bytes

DATABASES, LEDGER = "databases", "ledger"
START = "start a session with Session-Buddy, or set akosha_agent_data_dir to where its databases are"


async def databases(ground: CheckContext) -> list[Finding]:
    """One finding for each. What cannot be read now is not uploaded; what our engine does not know goes unverified."""
    engine = await ground.examination.engine()
    found: list[Finding] = []
    if not engine:
        text = "the engine that verifies copies, duckdb, is not installed"
        found.append(error(DATABASES, text, cure="pip install --force-reinstall akosha-agent"))
    facts, where = await ground.examination.databases(), ground.settings.agent_data_dir
    if not facts:
        if not (await ground.examination.spot(where)).folder.is_directory:
            return [*found, skipped(DATABASES, "there is no directory to look in")]
        text = f"none in {where} yet"
        return [*found, warning(DATABASES, text, cure=START)]
    for one in facts:
        name = f"database {one.name}"
        if one.problem is not None:
            cure = "put a good copy in its place, or move it away; the others are uploaded meanwhile"
            found.append(wrong(name, one.problem, cure=cure))
            continue
        assert one.header is not None
        told = f"{human_bytes(one.size)}, {human_bytes(one.wal)} of it in its WAL" if one.wal else human_bytes(one.size)
        if not one.is_known:
            text = f"{told}; its format ({one.header.version}) is not known to our engine, duckdb {engine}"
            cure = "pip install --upgrade duckdb where akosha-agent is installed; until then it is uploaded unverified"
            found.append(warning(name, text, cure=cure))
            continue
        readers = f", DuckDB {one.engine} and later read it" if one.engine else ""
        holders = await ground.examination.holders(one.paths)
        text = f"{told}; format {one.header.version}{readers}"
        found.append(ok(name, text, detail=f"open in {', '.join(holders)}" if holders else ""))
    return found


async def ledger(ground: CheckContext) -> list[Finding]:
    facts = await ground.examination.ledger()
    if facts is None:
        return [skipped(LEDGER, "there is none yet: the first start makes it")]
    return [ok(LEDGER, f"whole, {human_bytes(facts.size)}, version {facts.version}")]
