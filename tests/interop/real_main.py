"""Run Akosha's command in its own interpreter, with a route that returns its rows and an optional store file.

    python real_main.py STORE start --port PORT ...     STORE: a DuckDB file, or :memory:NAME

Akosha 0.11 stores everything in memory, in one hot store per group of tools. Here all groups share the store STORE, and
GET /rows on the same port returns its rows. Everything else is as in `python -m akosha.cli`.
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

    def create_app(**options: object) -> object:
        app = create(**options)
        app.custom_route("/rows", methods=["GET"])(rows)
        return app

    async def rows(request: object) -> object:
        from starlette.responses import Response

        with duckdb.connect(store) as connection:
            cursor = connection.execute(ROWS, [request.query_params.get("system_id", "")])
            names = [column[0] for column in cursor.description]
            stored = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return Response(json.dumps(stored), media_type="application/json")

    akosha.mcp.create_app = create_app
    sys.argv[0] = "akosha"
    runpy.run_module("akosha.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
