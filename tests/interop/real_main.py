"""Runs Akosha's own command, with Akosha's own interpreter; only what it keeps can be looked at, and may outlive it.

    python real_main.py STORE start --port PORT ...     STORE: a DuckDB file, or :memory:NAME

Today's Akosha keeps everything in memory, in a hot store for each group of tools. Here all groups share one, at STORE;
GET /rows tells what is in it, on the same port. Nothing else is other than in `python -m akosha.cli`.
"""

import json
import runpy
import sys

import akosha.mcp
import akosha.storage
import duckdb

ROWS = """SELECT system_id, conversation_id AS memory_id, content AS text, "timestamp"::VARCHAR AS "timestamp",
    metadata::VARCHAR AS metadata, list_sum(list_transform(embedding, lambda x: x * x)) AS square
    FROM conversations WHERE ? IN ('', system_id) ORDER BY conversation_id"""


def main() -> None:
    store = sys.argv.pop(1)
    akosha.storage.create_hot_store = lambda *_: akosha.storage.HotStore(store)
    create = akosha.mcp.create_app

    def create_app(**how: object) -> object:
        app = create(**how)
        app.custom_route("/rows", methods=["GET"])(rows)
        return app

    async def rows(request: object) -> object:
        from starlette.responses import Response

        with duckdb.connect(store) as connection:
            found = connection.execute(ROWS, [request.query_params.get("system_id", "")])
            names = [column[0] for column in found.description]
            kept = [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        return Response(json.dumps(kept), media_type="application/json")

    akosha.mcp.create_app = create_app
    sys.argv[0] = "akosha"
    runpy.run_module("akosha.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
