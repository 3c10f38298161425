"""What the benchmarks rely on: sessions of a writer, the counting proxy, the chart."""

import socket
import threading
import xml.etree.ElementTree as ET

import pytest

from tests.bench.chart import Series, chart
from tests.bench.counting_proxy import CountingProxy
from tests.bench.databases import Databases
from tests.bench.fleet import most_within

HEADER = "{http://www.w3.org/2000/svg}"


def count(path, table):
    import duckdb

    with duckdb.connect(str(path), read_only=True) as engine:
        return engine.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def test_a_session_is_in_the_wal_or_in_the_main_file(tmp_path):
    databases = Databases(tmp_path / "databases")
    file = databases.copy_to(1, tmp_path / "data")
    wal, before = file.with_name(f"{file.name}.wal"), file.read_bytes()
    rows = count(file, "conversations_v2"), count(file, "reflections_v2")
    databases.session(file, 0, checkpoint=False)
    assert file.read_bytes() == before
    assert 50_000 < wal.stat().st_size < 300_000
    databases.session(file, 1, checkpoint=True)
    assert not wal.exists()
    assert file.read_bytes() != before
    assert (count(file, "conversations_v2"), count(file, "reflections_v2")) == (rows[0] + 80, rows[1] + 20)


@pytest.fixture
def echo():
    """The port of a server that answers each piece with `ok`."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                while connection.recv(2**16):
                    connection.sendall(b"ok")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(30)


@pytest.mark.parametrize("rate", [None, 10_000_000])
def test_the_proxy_counts_what_is_sent_and_times_copies(echo, rate):
    with CountingProxy(f"http://127.0.0.1:{echo}") as proxy:
        proxy.bytes_per_second = rate
        with socket.create_connection(("127.0.0.1", int(proxy.url.rpartition(":")[2]))) as client:
            client.sendall(b"PUT / HTTP/1.1\r\n\r\n")
            assert client.recv(10) == b"ok"
            assert (proxy.connections, proxy.sent, proxy.copying_seconds) == (1, 18, 0.0)
            client.sendall(b"PUT / HTTP/1.1\r\nX-Amz-Copy-Source: a/b\r\n\r\n")
            assert client.recv(10) == b"ok"
        assert proxy.copying_seconds > 0
        assert proxy.bytes == proxy.sent + 4


def test_the_chart_is_a_valid_document_with_a_line_for_each_program():
    drawn = chart("MB <sent>", [Series("ours: 1 MB", [100_000, 900_000]), Series("theirs & more", [60_000_000] * 2)])
    document = ET.fromstring(drawn)
    lines = [line.get("points", "").split() for line in document.iter(f"{HEADER}polyline")]
    (ours, theirs) = [[tuple(map(float, point.split(","))) for point in line] for line in lines]
    assert [x for x, _ in ours] == [x for x, _ in theirs]
    assert ours[0][1] > ours[1][1] > theirs[0][1] == theirs[1][1], "more bytes are higher"
    texts = [text.text for text in document.iter(f"{HEADER}text")]
    assert {"MB <sent>", "ours: 1 MB", "theirs & more", "0.1 MB", "100 MB"} <= set(texts)


@pytest.mark.parametrize(
    ("times", "most"), [([], 0), ([1.0], 1), ([0.0, 0.05, 0.1, 0.3], 3), ([0.0, 0.2, 0.25, 0.29, 0.31], 3)]
)
def test_the_most_reconnections_within_a_time_are_counted(times, most):
    assert most_within(times, 0.1) == most
