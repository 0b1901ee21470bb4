"""A Flask app in servers as they are deployed: processes of their own, forks, sockets, and clients that leave."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from held import File, Postgres
from servers import ports
from servers.server import Server

HERE = Path(__file__).parent
APP = "flask_served:app"
GUNICORN = ("gunicorn", "--bind", "{host}:{port}", "--graceful-timeout", "5")
SERVERS = {
    "gunicorn-sync": (*GUNICORN, "--worker-class", "sync"),
    "gunicorn-gthread": (*GUNICORN, "--worker-class", "gthread", "--threads", "4"),
    "gunicorn-preload": (*GUNICORN, "--worker-class", "gthread", "--threads", "4", "--workers", "2", "--preload"),
    "waitress": ("waitress", "--listen", "{host}:{port}", "--threads", "4"),
}
KINDS = ("sync", "async", "raw", "sqlite")
SECONDS = 20


@dataclass
class Told:
    """What the client was told."""

    status: int
    body: bytes
    complete: bool


@dataclass
class Served:
    """A server, and the tables that its app writes to."""

    kind: str
    port: int
    process: subprocess.Popen[bytes]
    tables: File | Postgres
    log: Path

    def ask(self, path: str, method: str = "POST") -> Told:
        with closing(http.client.HTTPConnection(ports.HOST, self.port, timeout=SECONDS)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            try:
                return Told(response.status, response.read(), complete=True)
            except http.client.IncompleteRead as error:
                return Told(response.status, error.partial, complete=False)

    def held(self) -> list[int]:
        return self.tables.held()

    def is_clean(self) -> bool:
        """Whether nothing is idle in transaction, and nothing waits for a lock."""
        if isinstance(self.tables, Postgres):
            return self.tables.in_transaction() == 0
        with closing(sqlite3.connect(self.tables.path, timeout=0, isolation_level=None)) as look:
            try:
                look.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True

    def empty(self) -> None:
        if isinstance(self.tables, Postgres):
            self.tables.look.execute("TRUNCATE held, child")
            return
        with closing(sqlite3.connect(self.tables.path)) as look, look:
            look.execute("DELETE FROM held")

    def stop(self) -> int:
        """As who deploys it does: waitress knows Ctrl-C only."""
        waitress = "waitress" in self.process.args  # type: ignore[operator]
        self.process.send_signal(signal.SIGINT if waitress else signal.SIGTERM)
        return self.process.wait(SECONDS)


def within(holds: Callable[[], Any], seconds: float = SECONDS) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def serving(server: str, kind: str, tables: File | Postgres, folder: Path) -> Iterator[Served]:
    """This server in a process of its own, over the app and these tables."""
    port = ports.free()
    module, *options = (word.format(host=ports.HOST, port=port) for word in SERVERS[server])
    forks = "--preload" in options
    environment = {
        **os.environ,
        "SERVED_KIND": kind,
        "SERVED_URL": url_of(kind, tables),
        "SERVED_NAME": tables.name if isinstance(tables, Postgres) else "",
        "SERVED_FORKS": "yes" if forks else "",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
        "XDG_RUNTIME_DIR": str(folder),  # gunicorn's control socket is one for all, else
    }
    log = folder / "server.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", module, *options, APP]
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)
    served = Served(kind, port, process, tables, log)

    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return served.ask("/", "GET").status == 200
        except OSError:
            return False

    try:
        assert within(is_ready), log.read_text()
        yield served
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def url_of(kind: str, tables: File | Postgres) -> str:
    if isinstance(tables, File):
        return str(tables.path)
    drivers = {"sync": "psycopg", "async": "asyncpg"}
    return tables.server.url(drivers[kind]) if kind in drivers else tables.server.dsn


@contextmanager
def tables_for(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[File | Postgres]:
    if kind == "sqlite":
        yield File(folder / "held.db")
        return
    server: Server = request.getfixturevalue("postgres")
    with closing(Postgres(server)) as tables:
        yield tables


@pytest.fixture(scope="module", params=[(server, kind) for server in SERVERS for kind in KINDS], ids="-".join)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server, kind = request.param
    folder = tmp_path_factory.mktemp("served")
    with tables_for(kind, request, folder) as tables, serving(server, kind, tables, folder) as made:
        yield made


@pytest.fixture
def served(running: Served) -> Iterator[Served]:
    running.empty()
    yield running
    assert within(running.is_clean)


def test_what_is_answered_with_success_is_kept_before_the_answer(served: Served) -> None:
    for v, status in ((1, 200), (2, 201), (3, 204)):
        assert served.ask(f"/write/{v}/{status}").status == status
        assert v in served.held()


def test_what_is_answered_with_an_error_is_rolled_back(served: Served) -> None:
    for status in (302, 404, 409, 500):
        assert served.ask(f"/write/1/{status}").status == status
    assert served.ask("/raise/1").status == 500
    assert served.held() == []


def test_a_failed_commit_is_answered_by_the_apps_handler(served: Served) -> None:
    told = served.ask("/handled/late/1")
    assert (told.status, told.complete) == (409, True)
    assert told.body in (b"IntegrityError", b"UniqueViolationError", b"ForeignKeyViolationError", b"SQLError")
    assert served.held() == []


def test_a_failed_commit_without_a_handler_is_a_500(served: Served) -> None:
    told = served.ask("/late/1")
    assert (told.status, served.held()) == (500, [])
    assert b"written" not in told.body
    assert served.ask("/write/2/201").status == 201
    assert served.held() == [2]


def test_a_stream_that_writes_is_complete_when_all_is_kept(served: Served) -> None:
    assert served.ask("/stream") == Told(200, b"123", complete=True)
    assert served.held() == [1, 2, 3]


@pytest.mark.parametrize("path", ["/stream/late", "/stream/late/6"])
def test_a_stream_whose_last_commit_fails_is_truncated(served: Served, path: str) -> None:
    told = served.ask(path)
    assert (told.status, told.complete) == (200, False)
    assert served.held() == [1]


def test_a_client_that_leaves_half_way_ends_the_stream_and_keeps_what_was_settled(served: Served) -> None:
    with socket.create_connection((ports.HOST, served.port), timeout=SECONDS) as client:
        client.sendall(b"POST /stream/endless HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")
        while served.held()[:3] != [1, 2, 3]:
            assert client.recv(65536)
    assert within(lambda: has_ended(served))
    held = served.held()
    assert held == list(range(1, len(held) + 1))
    assert served.ask("/write/0/201").status == 201


def has_ended(served: Served) -> bool:
    """Whether nothing is written any more. A settled stream has no transaction open, so that says nothing."""
    before = served.held()
    time.sleep(0.2)
    return served.held() == before and served.is_clean()


def test_what_clients_are_told_at_once_is_what_is_held(served: Served) -> None:
    wanted = {v: (201, 409)[v % 2] for v in range(40)}
    with ThreadPoolExecutor(8) as clients:
        told = list(clients.map(lambda one: served.ask("/write/{}/{}".format(*one)).status, wanted.items()))
    assert told == list(wanted.values())
    assert served.held() == [v for v, status in wanted.items() if status == 201]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server", SERVERS)
def test_a_server_that_is_stopped_leaves_no_connection(
    server: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with tables_for(kind, request, tmp_path) as tables, serving(server, kind, tables, tmp_path) as served:
        assert served.ask("/write/1/201").status == 201
        if isinstance(tables, Postgres):
            assert tables.backends() > 0
        assert served.stop() == 0
        assert "Traceback" not in served.log.read_text()
        assert isinstance(tables, File) or within(lambda: tables.backends() == 0)
        assert served.held() == [1]
