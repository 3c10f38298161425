"""Runs moto's S3 on two ephemeral ports, plain and TLS, and prints them. Ends when its standard input is closed.

python moto_main.py CERTIFICATE_CHAIN PRIVATE_KEY
"""

import logging
import sys
import threading

import moto.s3.models
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


def main() -> None:
    # Tests send objects in smaller parts than AWS accepts.
    moto.s3.models.S3_UPLOAD_PART_MIN_SIZE = 1
    # Keep connections open, like S3.
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)
    certificate, key = sys.argv[1:3]
    plain = make_server("127.0.0.1", 0, application, threaded=True)
    secure = make_server("127.0.0.1", 0, application, threaded=True, ssl_context=(certificate, key))
    for server in (plain, secure):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(plain.server_port, secure.server_port, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
