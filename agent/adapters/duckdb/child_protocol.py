"""The protocol between a child and its parent.

`child_output` describes the frames.

    verify          {"verdict": {"rows": {table: count}, "unread": {table or column: reason}}},
                    or {"verdict": {"error": text, "damaged": bool}}
    replay          the same, but the rows are counted and not read
    open "graph"    {"tables": n}                   opens the copy for the three commands that follow
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

PAGE_ROWS = 500
"""Maximum number of rows in a page."""


def scratch_name(pid: int) -> str:
    """Return the name of DuckDB's temporary directory, next to the copy."""
    return f"engine-{pid}.tmp"
