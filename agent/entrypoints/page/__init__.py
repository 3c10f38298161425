"""The page, which shows the agent in a browser: `akosha-agent open`. `agent.entrypoints.control_api` serves it.

The files that browsers load are in the folder `static` beside this file: index.html at `/`, and each file with the
ending css, js or svg at its own name (`/page.js`). They are served as they are, without a build step; `files` has the
headers. The Content-Security-Policy forbids other hosts, and inline scripts and styles.

The script gets its data from the routes of the control API:

    POST /v1/page/session   {"token": the one of the fragment #token=...} -> {"session", "expires_at"}, once
    POST /v1/page/proof     {"id", "nonce"} -> {"proof": that the server knows the session}
    GET  /v1/status         the document of `akosha-agent status --json`
    GET  /v1/events         server-sent events; read with fetch, because EventSource cannot send a header
    GET  /v1/history        `documents.HistoryPage`
    GET  /v1/plots          `documents.Plots`
    GET  /v1/uploads        `documents.Uploads`, read from the bucket at each request
    POST /v1/sync, /v1/verify   202; the result is an event

Each but the first two needs `Authorization: Bearer SESSION`. The answer 401 means that the session has ended. The
script sends the session only after a proof: one for each event stream, and one for each request without a stream.
Another program can have taken the address after the agent stopped.
"""
