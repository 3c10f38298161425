"""The protocol between a child and its parent.

`child_output` describes the frames.

    verify          {"verdict": {"rows": {table: count}, "unread": {table or column: reason}}},
                    or {"verdict": {"error": text, "damaged": bool}}
    replay          the same, but the rows are counted and not read
    open "graph"    {"tables": n}                   opens the copy for the five commands that follow
    compare "sha"   {"rows": [rows, new rows, bytes of the new rows]}   writes the hashes of all rows to ROWS, and
                    compares them with the hashes in KNOWN, if it exists; both are in the directory `scratch_name`.
                    The next pages have the new rows only. null if it is not possible: the pages have all rows.
                    "sha": SHA-256 of the main file, or ""
    leave_out [[kind, ID], ...]   {"rows": true}    removes the hashes of these rows, and of rows with equal IDs, from
                    ROWS; null: of no rows; an error as at the end of the pages
    begin           {"started": true}               the next page is the first
    page            {"page": [[kind, ID, digest, embedded, bytes], ...]}, which may be empty; null is the end, and
                    so is an error that names the tables DuckDB cannot read: all other rows were sent before
    read [p, ...]   {"rows": [[text, embedding, time, metadata], ...]}   of the last page, by position
    copy "path"     {"copy": true}                  closes the copy; the next commands are about this one, "" for none
    fold            {"folded": {"rows": {table: count}}}, or {"folded": {"error": text}}
    (any)           {"error": text}                 and the child exits
"""

COPY = b"copy"
VERIFY, REPLAY, OPEN, BEGIN, PAGE, READ, FOLD = b"verify", b"replay", b"open", b"begin", b"page", b"read", b"fold"
COMPARE, LEAVE_OUT = b"compare", b"leave_out"

KNOWN, ROWS = "known.rows", "all.rows"

PAGE_ROWS = 500
"""Maximum number of rows in a page."""


def scratch_name(pid: int) -> str:
    """Return the name of the child's temporary directory, next to the copy."""
    return f"engine-{pid}.tmp"


def is_scratch(name: str) -> bool:
    """Return whether a child's temporary directory can have this name."""
    return name.startswith("engine-") and name.endswith(".tmp")
