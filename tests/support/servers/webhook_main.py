"""Runs a receiver of webhooks as a process and prints its address. Ends when its standard input is closed.

python webhook_main.py [--port PORT] --file FILE        a JSON line of each request is in the file before the answer
"""

import argparse
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HTTP_NO_CONTENT = 204


class _Handler(BaseHTTPRequestHandler):
    file: int

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        if len(body) == length:  # otherwise the connection has ended
            headers = {name.lower(): value for name, value in self.headers.items()}
            line = {"target": self.path, "headers": headers, "body": body.decode()}
            os.write(self.file, f"{json.dumps(line)}\n".encode())
            self.send_response(HTTP_NO_CONTENT)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Ignore the errors of connections: tests break them."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--file", type=Path, required=True)
    arguments = parser.parse_args()
    _Handler.file = os.open(arguments.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    server = _Server(("127.0.0.1", arguments.port), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
