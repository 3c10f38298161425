"""The record of each target, in three tables; loaded and saved as a unit. Runs on the ledger's thread."""

import sqlite3
from collections.abc import Iterator

from agent.adapters.sqlite_ledger import rows
from agent.domain.delivery_state import DatabaseRecord, Intent, Target, TargetRecord


class Targets:
    """Reads and writes TargetRecords, in a transaction of the caller."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def load(self, target: Target) -> TargetRecord:
        """Return the record of a target; an empty one if the target is unknown."""
        found = self._connection.execute(
            "SELECT known, attempts, attempt_request, failures, retry_at, error, newest_upload_id, last_success"
            " FROM targets WHERE id = ?",
            (target.id,),
        ).fetchone()
        if found is None:
            return TargetRecord(target=target)
        known, attempts, attempt_request, failures, retry_at, error, newest, last_success = found
        return TargetRecord(
            target=target,
            known=bool(known),
            databases={record.database: record for record in self._databases(target)},
            intent=self._intent(target),
            attempts=attempts,
            attempt_request=attempt_request,
            failures=failures,
            retry_at=rows.read_optional_time(retry_at),
            error=error,
            newest_upload_id=newest,
            last_success=rows.read_optional_time(last_success),
        )

    def save(self, before: TargetRecord, record: TargetRecord) -> None:
        """Write the differences between `record` and `before`, which was loaded in this transaction."""
        if record == before:
            return
        target = record.target
        self._connection.execute(
            "INSERT INTO targets VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " known = excluded.known, attempts = excluded.attempts, attempt_request = excluded.attempt_request,"
            " failures = excluded.failures, retry_at = excluded.retry_at, error = excluded.error,"
            " newest_upload_id = excluded.newest_upload_id, last_success = excluded.last_success",
            (
                target.id,
                target.method,
                target.endpoint,
                target.bucket,
                target.system_id,
                record.known,
                record.attempts,
                record.attempt_request,
                record.failures,
                rows.optional_time_text(record.retry_at),
                rows.plain(record.error),
                record.newest_upload_id,
                rows.optional_time_text(record.last_success),
            ),
        )
        for name, database in record.databases.items():
            if before.databases.get(name) != database:
                self._save_database(target, database)
        if record.intent != before.intent:
            self._save_intent(target, record.intent)

    def reported_by(self, result_id: str) -> list[Target]:
        """Return the targets with a database whose delivery the result reports."""
        found = self._connection.execute(
            "SELECT DISTINCT method, endpoint, bucket, system_id FROM targets"
            " JOIN databases ON target_id = id WHERE delivered_by = ?",
            (result_id,),
        ).fetchall()
        return [Target(*row) for row in found]

    def _databases(self, target: Target) -> Iterator[DatabaseRecord]:
        found = self._connection.execute(
            "SELECT name, state, fingerprint, parts, rows, problem, delivered_by"
            " FROM databases WHERE target_id = ? ORDER BY name",
            (target.id,),
        )
        for name, state, fingerprint, parts, counts, problem, delivered_by in found.fetchall():
            yield DatabaseRecord(
                database=name,
                state=rows.read_state(state),
                fingerprint=rows.read_fingerprint(fingerprint),
                parts=rows.read_parts(parts),
                rows=rows.read_counts(counts),
                problem=rows.read_problem(problem),
                delivered_by=delivered_by,
            )

    def _save_database(self, target: Target, record: DatabaseRecord) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO databases VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                target.id,
                record.database,
                record.state.value,
                rows.fingerprint_text(record.fingerprint),
                rows.parts_text(record.parts),
                rows.json_text(dict(record.rows)),
                rows.problem_text(record.problem),
                record.delivered_by,
            ),
        )

    def _intent(self, target: Target) -> Intent | None:
        found = self._connection.execute(
            "SELECT request_id, upload_id, digests, databases FROM intents WHERE target_id = ?", (target.id,)
        ).fetchone()
        if found is None:
            return None
        request_id, upload_id, digests, databases = found
        return Intent(
            request_id=request_id,
            upload_id=upload_id,
            digests=rows.read_digests(digests),
            databases=rows.read_names(databases),
        )

    def _save_intent(self, target: Target, intent: Intent | None) -> None:
        self._connection.execute("DELETE FROM intents WHERE target_id = ?", (target.id,))
        if intent is not None:
            self._connection.execute(
                "INSERT INTO intents VALUES (?, ?, ?, ?, ?)",
                (
                    target.id,
                    intent.request_id,
                    intent.upload_id,
                    rows.json_text(dict(intent.digests)),
                    rows.json_text(list(intent.databases)),
                ),
            )
