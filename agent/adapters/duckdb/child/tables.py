"""The tables of a database that hold memories, and the statements that read them by column name.

The columns of Session-Buddy's tables depend on its version: a missing column reads as absent, a column of another type
is cast. Pages are ranges of rowids: DuckDB skips rows outside the range, so every page costs the same.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.adapters.duckdb.child.contents import is_unsupported
from agent.adapters.duckdb.child.engine import Engine, quoted, reason_in
from agent.adapters.duckdb.rows import TIMES
from agent.domain.databases import CONVERSATION_TABLES
from agent.domain.memories import EMBEDDING_LENGTH, Kind

EMBEDDING_BYTES = 4 * EMBEDDING_LENGTH
"""Size of an embedding in a database."""

SMALL_BYTES = 64 * 1024
"""A row with more text than this is read again, in a statement for a few such rows."""

VECTOR_ROWS = 2048
"""Number of rows that DuckDB reads at once, at least."""

HASH_SCHEME = 1
"""Raise it when the input of the hashes changes: no hash of another scheme equals one of this."""

_NAMES = "kg_entities"
_LONG = frozenset({"content", "observations", "properties", "tags"})
"""Columns whose texts may be large: their MD5 is hashed, so that they are not copied."""

_NUMBERS = re.compile(r"(FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|U?(TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|VARCHAR)\[\d*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """The columns of one kind of memory. `tables`: the newer name first, which has all rows if it exists.

    `named`: columns with IDs of entities, whose names are part of the memory.
    """

    kind: Kind
    tables: tuple[str, ...]
    needs: tuple[str, ...]
    texts: tuple[str, ...]
    lists: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    block: int = VECTOR_ROWS


_SHAPES = (
    _Shape(
        kind="conversation",
        tables=CONVERSATION_TABLES,
        needs=("id", "content"),
        texts=("id", "content", "project", "session_id", "category", "namespace", "source_type"),
    ),
    _Shape(
        kind="reflection",
        tables=("reflections_v2", "reflections"),
        needs=("id", "content"),
        texts=("id", "content", "project", "category", "conversation_id", "insight_type"),
        lists=("tags",),
    ),
    _Shape(
        kind="entity",
        tables=("kg_entities",),
        needs=("id", "name"),
        texts=("id", "name", "entity_type"),
        lists=("observations",),
        documents=("properties",),
    ),
    _Shape(
        kind="relationship",
        tables=("kg_relationships",),
        needs=("id", "from_entity", "to_entity"),
        texts=("id", "from_entity", "to_entity", "relation_type"),
        documents=("properties",),
        named=("from_entity", "to_entity"),
        block=4 * VECTOR_ROWS,  # each block scans all entities for the names
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with memories. Its statements return `columns` in this order, for `block` rows at most."""

    kind: Kind
    name: str
    columns: tuple[str, ...]
    first: int
    last: int
    block: int
    states: str
    """Parameters: first and last rowid. Returns rowid, bytes of text, whether it has an embedding, then the columns,
    or NULLs if the text is larger than SMALL_BYTES."""
    rows: str
    """Parameters: first and last rowid, list of rowids. Returns rowid, then the columns."""
    embedding: str
    """Parameters: first and last rowid, list of rowids with an embedding. Returns rowid, and the embedding as JSON."""
    some_states: str
    """As `states`, with a third parameter: list of the rowids to return."""
    hashed_columns: tuple[str, ...]
    """All columns that the hash depends on, also those that the table lacks."""
    hashes: str
    """Parameters: a prefix of what is hashed, first and last rowid. Returns one row: the hashes of all rows as one text
    of 32 hex digits each, the list of their rowids, the list of their bytes of text and embedding."""
    hashes_of: str
    """As `hashes`, with a fourth parameter: list of the IDs of the rows."""
    repeated_ids: str
    """Returns the IDs that several rows have."""


def tables_of(engine: Engine, found: Mapping[str, "Found"]) -> tuple[list[Table], dict[str, str]]:
    """Return the tables with memories that have rows, and those that DuckDB cannot read: name -> reason.

    An optional column that DuckDB cannot read is treated as absent, and removed from `found`. Raises DuckDB's errors.
    """
    tables, unread = [], dict[str, str]()
    for shape in _SHAPES:
        name = next((name for name in shape.tables if name in found), None)
        if name is None or not set(shape.needs) <= found[name].types.keys():
            continue
        unreadable = _drop_unreadable(engine, shape, found[name])
        if reason := next((unreadable[column] for column in shape.needs if column in unreadable), None):
            unread[name] = reason
            continue
        ((first, last),) = engine.rows(f"SELECT min(rowid), max(rowid) FROM {found[name].quoted}")  # noqa: S608 - quoted
        if isinstance(first, int) and isinstance(last, int):
            tables.append(_table(shape, found[name], first, last))
    return tables, unread


def _drop_unreadable(engine: Engine, shape: _Shape, found: "Found") -> dict[str, str]:
    """Remove the columns that DuckDB cannot read from `found`; return column -> reason."""
    wanted = (*shape.texts, *shape.lists, *shape.documents, *TIMES[shape.kind], "embedding")
    present = [column for column in dict.fromkeys(wanted) if column in found.types]
    if not _read_error(engine, found, present):
        return {}
    unreadable = {column: error for column in present if (error := _read_error(engine, found, [column]))}
    for column in unreadable:
        del found.types[column]
    return unreadable


def _read_error(engine: Engine, found: "Found", columns: Sequence[str]) -> str:
    """Return why DuckDB cannot read these columns together, "" if it can. Raises DuckDB's other errors."""
    names = ", ".join(quoted(found.names[column]) for column in columns)
    try:
        list(engine.rows(f"SELECT {names} FROM {found.quoted} LIMIT 0"))  # noqa: S608 - quoted
    except Exception as error:
        if not is_unsupported(error):
            raise
        return reason_in(error)
    return ""


def repeated_ids(engine: Engine, table: Table) -> list[str]:
    """Return the IDs that several rows of the table have. Reads no row if the ID is the primary key."""
    key = list(engine.rows("SELECT lower(name) FROM pragma_table_info(?) WHERE pk", [table.name]))
    if key == [("id",)]:
        return []
    return [str(row_id) for (row_id,) in engine.all_rows(table.repeated_ids) if row_id is not None]


def entity_names(engine: Engine, found: Mapping[str, "Found"], ids: Sequence[str]) -> Mapping[str, str]:
    """Return entity ID -> name. Entities without a name, or that do not exist, are left out."""
    entities = found.get(_NAMES)
    if not ids or entities is None or not {"id", "name"} <= entities.types.keys():
        return {}
    # concat: DuckDB does not look the IDs up in an index. The verification reads none, so one in a verified copy may
    # be damaged.
    statement = _names_statement(entities, "AND concat(entity_id) IN (SELECT unnest(?::VARCHAR[]))")
    try:
        return {str(row_id): str(name) for row_id, name in engine.all_rows(statement, [ids])}
    except Exception as error:
        if not is_unsupported(error):
            raise
        return {}


def create_entity_names(engine: Engine, found: Mapping[str, "Found"]) -> None:
    """Create the temporary table that `Table.hashes` of relationships reads: what `entity_names` returns of all IDs."""
    table = "CREATE OR REPLACE TEMP TABLE entity_names"
    entities = found.get(_NAMES)
    if entities is not None and {"id", "name"} <= entities.types.keys():
        try:
            engine.prepare(f"{table} AS {_names_statement(entities)}")
        except Exception as error:
            if not is_unsupported(error):
                raise
        else:
            return
    engine.prepare(f"{table} (entity_id VARCHAR, entity_name VARCHAR)")


def _names_statement(entities: "Found", condition: str = "") -> str:
    return (
        f"SELECT entity_id, min(name) AS entity_name FROM (SELECT {entities.text('id')} AS entity_id, "  # noqa: S608 - quoted
        f"trim({entities.text('name')}) AS name FROM {entities.quoted}) WHERE name <> '' {condition} GROUP BY entity_id"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A table in the database. `types` and `names` are by the lower-case column name, as DuckDB compares names."""

    quoted: str
    types: dict[str, str]
    names: dict[str, str]

    def text(self, column: str) -> str:
        kind = self.types[column]
        if kind.startswith(("STRUCT", "MAP")):
            return f"CAST(to_json({self._name(column)}) AS VARCHAR)"
        return f"CAST({self._name(column)} AS VARCHAR)"

    def texts(self, column: str) -> str:
        """Return the expression for a list as JSON, or for another value as text."""
        listed = self.types[column].endswith("]")
        return f"CAST(to_json({self._name(column)}) AS VARCHAR)" if listed else self.text(column)

    def time(self, column: str) -> str:
        if self.types[column] == "TIMESTAMP WITH TIME ZONE":  # a cast would depend on the session's time zone
            return f"CAST(make_timestamp(epoch_us({self._name(column)})) AS VARCHAR) || '+00:00'"
        return self.text(column)

    def embedding(self) -> str:
        """Return the expression for the embedding as a list of numbers, or NULL."""
        kind = self.types.get("embedding", "")
        if kind.startswith("FLOAT["):
            return f"CAST({self._name('embedding')} AS FLOAT[])"  # as DOUBLE, 0.1 would become 0.10000000149011612
        if kind in ("VARCHAR", "JSON"):
            return f"TRY_CAST({self.text('embedding')} AS DOUBLE[])"
        return f"TRY_CAST({self._name('embedding')} AS DOUBLE[])" if _NUMBERS.fullmatch(kind) else "NULL::FLOAT[]"

    def _name(self, column: str) -> str:
        return quoted(self.names[column])


def columns_of(engine: Engine) -> dict[str, Found]:
    """Return the columns of the tables that may hold memories, by the table's name in lower case."""
    possible = {name for shape in _SHAPES for name in shape.tables}
    found: dict[str, Found] = {}
    for (table,) in list(
        engine.rows(
            "SELECT table_name FROM duckdb_tables() WHERE database_name = 's' AND schema_name = 'main' ORDER BY ALL"
        )
    ):
        if (key := str(table).lower()) not in possible:
            continue
        entry = found[key] = Found(quoted=f"s.main.{quoted(str(table))}", types={}, names={})
        # duckdb_columns() would take 12 ms: it examines every view of the system catalog, too.
        for column, kind in engine.rows("SELECT name, type FROM pragma_table_info(?)", [entry.quoted]):
            entry.types[str(column).lower()] = str(kind)
            entry.names[str(column).lower()] = str(column)
    return found


def _table(shape: _Shape, found: Found, first: int, last: int) -> Table:
    wanted = [(name, found.text) for name in (*shape.texts, *shape.documents)]
    wanted += [(name, found.texts) for name in shape.lists] + [(name, found.time) for name in TIMES[shape.kind]]
    present = {name: expression(name) for name, expression in wanted if name in found.types}
    columns = ", ".join(f"{expression} AS {quoted(name)}" for name, expression in present.items())
    size = " + ".join(f"coalesce(strlen({quoted(name)}), 0)" for name in present)
    small_columns = ", ".join(f"if(size <= {SMALL_BYTES}, {quoted(name)}, NULL)" for name in present)
    numbers = found.embedding()
    # If the sum of the squares is finite, so are all numbers, and none is NULL. To look at each takes twice as long.
    is_complete = f"len(numbers) = {EMBEDDING_LENGTH}"
    is_embedded = (
        f"CASE WHEN {is_complete} AND isfinite(TRY(list_inner_product(numbers, numbers))) THEN true ELSE coalesce("
        f"{is_complete} AND list_bool_and(list_transform(numbers, lambda x: x IS NOT NULL AND isfinite(x))), false) END"
    )
    joins = "".join(
        f" LEFT JOIN entity_names AS {end}_names ON {quoted(end)} = {end}_names.entity_id" for end in shape.named
    )
    in_range, listed = "WHERE rowid BETWEEN ? AND ?", "rowid IN (SELECT unnest(?::BIGINT[]))"

    def states(where: str) -> str:
        return (
            f"SELECT row_id, size, {is_embedded}, {small_columns} FROM (SELECT *, {size} AS size FROM "  # noqa: S608 - quoted
            f"(SELECT rowid AS row_id, {numbers} AS numbers, {columns} FROM {found.quoted} {where}))"
        )

    def hashes(where: str) -> str:
        return (
            f"SELECT string_agg(hash, ''), list(row_id), list(bytes) FROM (SELECT row_id, "  # noqa: S608 - quoted
            f"md5(concat(?, embedded, {_hashed(shape, wanted, present)})) AS hash, "
            f"{size} + if(embedded, {EMBEDDING_BYTES}, 0) AS bytes FROM (SELECT *, {is_embedded} AS embedded FROM "
            f"(SELECT rowid AS row_id, {numbers} AS numbers, {columns} FROM {found.quoted} {where})) {joins})"
        )

    return Table(
        kind=shape.kind,
        name=found.quoted,
        columns=tuple(present),
        first=first,
        last=last,
        block=shape.block,
        states=states(in_range),
        some_states=states(f"{in_range} AND {listed}"),
        rows=f"SELECT rowid, {columns} FROM {found.quoted} {in_range} AND {listed}",  # noqa: S608 - quoted
        embedding=(
            f"SELECT row_id, replace(CAST(numbers AS VARCHAR), ' ', '') FROM "  # noqa: S608 - quoted
            f"(SELECT rowid AS row_id, {numbers} AS numbers FROM {found.quoted} {in_range} AND {listed})"
        ),
        hashed_columns=tuple(name for name, _ in wanted),
        hashes=hashes(in_range),
        hashes_of=hashes(f"{in_range} AND concat({present['id']}) IN (SELECT unnest(?::VARCHAR[]))"),
        repeated_ids=f"SELECT {present['id']} FROM {found.quoted} GROUP BY ALL HAVING count(*) > 1",  # noqa: S608 - quoted
    )


def _hashed(shape: _Shape, wanted: Sequence[tuple[str, object]], present: Mapping[str, str]) -> str:
    """Return the arguments of concat: the lengths separate the columns, so that no two rows give the same text."""
    arguments = []
    for name, _ in wanted:
        value = f"md5({quoted(name)})" if name in _LONG else quoted(name)
        arguments.append(f"strlen({quoted(name)}), ':', {value}" if name in present else "':'")
    arguments += [f"strlen({end}_names.entity_name), ':', {end}_names.entity_name" for end in shape.named]
    return ", ".join(arguments)
