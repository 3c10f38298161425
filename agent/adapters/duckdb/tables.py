"""Which of a database's tables hold memories, and the statements that read them by column name.

Session-Buddy's tables grow columns, and older ones lack some: what is not there reads as absent, what is of another
type is cast. Pages go by ranges of rowid: the engine skips what is outside, so no page costs more than the one before.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.adapters.duckdb.contents import is_inability
from agent.adapters.duckdb.engine import Engine, quoted, reason_in
from agent.adapters.duckdb.rows import TIMES
from agent.domain.memories import EMBEDDING_LENGTH, Kind

SMALL_BYTES = 64 * 1024
"""A row with more text than this comes alone."""

VECTOR_ROWS = 2048
"""What the engine reads at once, whatever is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """`tables`: the newer name first; a database that has it has moved its rows there."""

    kind: Kind
    tables: tuple[str, ...]
    needs: tuple[str, ...]
    texts: tuple[str, ...]
    lists: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    block: int = VECTOR_ROWS


_SHAPES = (
    _Shape(
        kind="conversation",
        tables=("conversations_v2", "conversations"),
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
        block=4 * VECTOR_ROWS,  # for each block all entities are looked through for the names
    ),
)
_NAMES = "kg_entities"
_NUMBERS = re.compile(r"(FLOAT|DOUBLE|DECIMAL\(\d+,\d+\)|U?(TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|VARCHAR)\[\d*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that holds memories. `columns` are what its statements return, in order; `block` rows at most at once."""

    kind: Kind
    name: str
    columns: tuple[str, ...]
    first: int
    last: int
    block: int
    seeing: str
    """Parameters: first and last rowid. Returns rowid, bytes of text, whether embedded, then the columns, or NULLs
    where that is more than SMALL_BYTES."""
    whole: str
    """Parameter: a rowid. Returns the columns."""
    embedding: str
    """Parameters: first and last rowid, list of rowids that are embedded. Returns rowid, and the embedding as JSON."""


def tables_of(engine: Engine) -> tuple[list[Table], dict[str, str]]:
    """Return the tables with memories, with at least one row, and those that this engine cannot read: name -> why.

    A column that it cannot read, and that a memory can do without, reads as absent. Raises whatever the engine raises.
    """
    found = _columns(engine)
    tables, unread = [], dict[str, str]()
    for shape in _SHAPES:
        name = next((name for name in shape.tables if name in found), None)
        if name is None or not set(shape.needs) <= found[name].types.keys():
            continue
        lost = _leave_out_unreadable(engine, shape, found[name])
        if why := next((lost[column] for column in shape.needs if column in lost), None):
            unread[name] = why
            continue
        ((first, last),) = engine.rows(f"SELECT min(rowid), max(rowid) FROM {found[name].quoted}")  # noqa: S608 - quoted
        if isinstance(first, int) and isinstance(last, int):
            tables.append(_table(shape, found[name], first, last))
    return tables, unread


def _leave_out_unreadable(engine: Engine, shape: _Shape, found: "_Found") -> dict[str, str]:
    """Drop what the engine cannot read from the columns that are found; return why, by column."""
    wanted = (*shape.texts, *shape.lists, *shape.documents, *TIMES[shape.kind], "embedding")
    lost = dict[str, str]()
    for column in dict.fromkeys(wanted):
        if column not in found.types:
            continue
        try:
            list(engine.rows(f"SELECT {quoted(found.names[column])} FROM {found.quoted} LIMIT 0"))  # noqa: S608 - quoted
        except Exception as error:
            if not is_inability(error):
                raise
            lost[column] = reason_in(error)
            del found.types[column]
    return lost


def entity_names(engine: Engine, ids: Sequence[str]) -> Mapping[str, str]:
    """Return the names of entities, by id; what has none, or is not there, is left out."""
    entities = _columns(engine).get(_NAMES)
    if not ids or entities is None or not {"id", "name"} <= entities.types.keys():
        return {}
    statement = (
        f"SELECT id, min(name) FROM (SELECT {entities.text('id')} AS id, trim({entities.text('name')}) AS name "  # noqa: S608 - quoted
        f"FROM {entities.quoted}) WHERE name <> '' AND id IN (SELECT unnest(?::VARCHAR[])) GROUP BY id"
    )
    try:
        return {str(row_id): str(name) for row_id, name in engine.rows(statement, [ids])}
    except Exception as error:
        if not is_inability(error):
            raise
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A table as it is: `types` and `names` by the column's name in lower case, as the engine compares them."""

    quoted: str
    types: dict[str, str]
    names: dict[str, str]

    def text(self, column: str) -> str:
        kind = self.types[column]
        if kind.startswith(("STRUCT", "MAP")):
            return f"CAST(to_json({self._name(column)}) AS VARCHAR)"
        return f"CAST({self._name(column)} AS VARCHAR)"

    def texts(self, column: str) -> str:
        """Return what gives a list as JSON, and anything else as it is."""
        listed = self.types[column].endswith("]")
        return f"CAST(to_json({self._name(column)}) AS VARCHAR)" if listed else self.text(column)

    def time(self, column: str) -> str:
        if self.types[column] == "TIMESTAMP WITH TIME ZONE":  # not by cast: that depends on the session's zone
            return f"CAST(make_timestamp(epoch_us({self._name(column)})) AS VARCHAR) || '+00:00'"
        return self.text(column)

    def embedding(self) -> str:
        """Return what gives the embedding as a list of numbers, or NULL."""
        kind = self.types.get("embedding", "")
        if kind.startswith("FLOAT["):
            return f"CAST({self._name('embedding')} AS FLOAT[])"  # not wider: 0.1 would become 0.10000000149011612
        if kind in ("VARCHAR", "JSON"):
            return f"TRY_CAST({self.text('embedding')} AS DOUBLE[])"
        return f"TRY_CAST({self._name('embedding')} AS DOUBLE[])" if _NUMBERS.fullmatch(kind) else "NULL::FLOAT[]"

    def _name(self, column: str) -> str:
        return quoted(self.names[column])


def _columns(engine: Engine) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    for table, column, kind in engine.rows(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() JOIN duckdb_tables() "
        "USING (database_name, schema_name, table_name) "
        "WHERE database_name = 's' AND schema_name = 'main' ORDER BY table_name, column_index"
    ):
        place = f"s.main.{quoted(str(table))}"
        entry = found.setdefault(str(table).lower(), _Found(quoted=place, types={}, names={}))
        entry.types[str(column).lower()] = str(kind)
        entry.names[str(column).lower()] = str(column)
    return found


def _table(shape: _Shape, found: _Found, first: int, last: int) -> Table:
    asked = [(name, found.text) for name in (*shape.texts, *shape.documents)]
    asked += [(name, found.texts) for name in shape.lists] + [(name, found.time) for name in TIMES[shape.kind]]
    there = {name: expression(name) for name, expression in asked if name in found.types}
    columns = ", ".join(f"{expression} AS {quoted(name)}" for name, expression in there.items())
    size = " + ".join(f"coalesce(strlen({quoted(name)}), 0)" for name in there)
    parts = ", ".join(f"if(size <= {SMALL_BYTES}, {quoted(name)}, NULL)" for name in there)
    numbers = found.embedding()
    sound = (
        f"coalesce(len(numbers) = {EMBEDDING_LENGTH} AND "
        "list_bool_and(list_transform(numbers, lambda x: x IS NOT NULL AND isfinite(x))), false)"
    )
    return Table(
        kind=shape.kind,
        name=found.quoted,
        columns=tuple(there),
        first=first,
        last=last,
        block=shape.block,
        seeing=(
            f"SELECT place, size, {sound}, {parts} FROM (SELECT *, {size} AS size FROM "  # noqa: S608 - quoted
            f"(SELECT rowid AS place, {numbers} AS numbers, {columns} FROM {found.quoted} WHERE rowid BETWEEN ? AND ?))"
        ),
        whole=f"SELECT {columns} FROM {found.quoted} WHERE rowid = ?",  # noqa: S608 - quoted
        embedding=(
            f"SELECT place, replace(CAST(numbers AS VARCHAR), ' ', '') FROM "  # noqa: S608 - quoted
            f"(SELECT rowid AS place, {numbers} AS numbers FROM {found.quoted} "
            "WHERE rowid BETWEEN ? AND ? AND rowid IN (SELECT unnest(?::BIGINT[])))"
        ),
    )
