"""Real S3 servers for tests: moto (answers like AWS) and rclone (answers differently), plain and over TLS.

Each is a separate process on ephemeral loopback ports, which ends with the context.
"""

import contextlib
import http.client
import itertools
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import trustme

from tests.support.servers.ports import HeldPorts

ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "canary+secret/that+never+appears+in+a+text"
START_SECONDS = 60

_HERE = Path(__file__).parent
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Authority:
    """A new CA for tests, and its certificate for 127.0.0.1 and localhost; it replaces those in `folder`."""

    folder: Path
    ca: Path = field(init=False)
    chain: Path = field(init=False)
    key: Path = field(init=False)

    def __post_init__(self):
        for name in ("ca", "chain", "key"):
            object.__setattr__(self, name, self.folder / f"{name}.pem")
        authority = trustme.CA()
        server = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(str(self.ca))
        server.private_key_pem.write_to_path(str(self.key))
        self.chain.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))


@dataclass(frozen=True)
class S3Server:
    """A running server. `ca`: the file with its CA; None for plain HTTP."""

    endpoint: str
    ca: Path | None = None

    def new_bucket(self) -> str:
        bucket = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.create_bucket(bucket)
        return bucket

    def create_bucket(self, bucket: str) -> None:
        self._ask("PUT", f"/{bucket}")

    def delete_bucket(self, bucket: str) -> None:
        """Delete an empty bucket."""
        self._ask("DELETE", f"/{bucket}")

    def pending_uploads(self, bucket: str) -> int:
        """Return the number of multipart uploads that are neither completed nor aborted."""
        with contextlib.suppress(FileNotFoundError):  # rclone's answer if there are none
            return len(re.findall(rb"<UploadId>", self._ask("GET", f"/{bucket}?uploads=")))
        return 0

    def replace(self, path: str, data: bytes) -> None:
        """Give an object other bytes, and keep its metadata."""
        headers = self._answer("HEAD", path)[0]
        self._ask(
            "PUT", path, data, {name: headers[name] for name in headers if name.lower().startswith("x-amz-meta-")}
        )

    def _ask(self, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        return self._answer(method, path, data, headers)[1]

    def _answer(
        self, method: str, path: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[Mapping[str, str], bytes]:
        """Return the headers and the body of the response. Raises FileNotFoundError."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        signed = AWSRequest(method=method, url=self.endpoint + path, data=bytes(data), headers=dict(headers or {}))
        S3SigV4Auth(Credentials(ACCESS_KEY, SECRET_KEY), "s3", "us-east-1").add_auth(signed)
        address = urlsplit(self.endpoint).netloc
        with contextlib.closing(
            http.client.HTTPSConnection(address, context=ssl.create_default_context(cafile=self.ca))
            if self.ca
            else http.client.HTTPConnection(address)
        ) as connection:
            connection.request(method, path, bytes(data), dict(signed.headers))
            answer = connection.getresponse()
            text = answer.read()
        if answer.status == http.client.NOT_FOUND:
            raise FileNotFoundError(path)
        assert answer.status in (http.client.OK, http.client.NO_CONTENT), text
        return dict(answer.headers), text


def aws_environment(**more: str) -> dict[str, str]:
    """Return the environment variables with which the AWS credential chain finds only the test's credentials."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        **more,
    }


@contextlib.contextmanager
def running_moto(authority: Authority) -> Iterator[tuple[S3Server, S3Server]]:
    """Run moto; yield its plain HTTP server and its TLS server."""
    command = [sys.executable, str(_HERE / "moto_main.py"), str(authority.chain), str(authority.key)]
    with _process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        plain, secure = process.stdout.readline().split()
        yield S3Server(f"http://127.0.0.1:{int(plain)}"), S3Server(f"https://127.0.0.1:{int(secure)}", authority.ca)


class Rclone:
    """`rclone serve s3` on a folder, over TLS if `authority` is given. Its port and its data survive a kill."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        self._folder, self._authority = folder, authority
        self._port, self._held = 0, HeldPorts()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> S3Server:
        name = "https" if self._authority else "http"
        return S3Server(f"{name}://127.0.0.1:{self._port}", self._authority.ca if self._authority else None)

    def start(self) -> None:
        """Start the server, on the previous port if there was one, and wait until it listens."""
        self._held.release()
        address = f"127.0.0.1:{self._port}"
        command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", address, str(self._folder)]
        command += ["--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
        if self._authority:
            command += ["--cert", str(self._authority.chain), "--key", str(self._authority.key)]
        environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        output = []
        for line in self._process.stderr:
            output.append(line.decode())
            if found := re.search(r"https?://127\.0\.0\.1:(\d+)", output[-1]):
                break
        else:
            raise AssertionError("".join(output))
        # rclone writes more; a full pipe must not block it.
        self._drain = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._drain.start()
        self._port = int(found[1])
        _await_port(self._port)

    def kill(self) -> None:
        """Kill the server; meanwhile its port refuses connections."""
        if self._process is not None:
            with self._process:
                self._process.kill()
                self._drain.join()
            self._process = None
            self._held.hold([self._port])

    def pause(self) -> None:
        """Suspend the process: connections are accepted, and no request is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._held.release()


@contextlib.contextmanager
def running_rclone(folder: Path, authority: Authority | None = None) -> Iterator[S3Server]:
    """Run `rclone serve s3` on a folder, over TLS if `authority` is given."""
    with Rclone(folder, authority) as rclone:
        yield rclone.server


def _await_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens on {port}"
        threading.Event().wait(0.02)


@contextlib.contextmanager
def _process(command: list[str], **how) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(command, **how) as process:
        try:
            yield process
        finally:
            process.terminate()
