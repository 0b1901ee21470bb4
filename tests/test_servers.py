"""The tests' own ground: real servers, a database of this run's own, and a line that breaks where it is told to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from servers import started
from servers.found import USUAL, VARIABLES, Servers, named
from servers.proxy import Fault, FaultProxy
from servers.server import LABELS, NoServerError, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.server import Kind

Starter = Callable[[], AbstractContextManager[Server]]

STARTERS = [started.postgres, *([started.mariadb] if shutil.which("mariadb-install-db") else [])]
WAITING = """
import time
from servers import started
with started.postgres() as own:
    print(own.port, flush=True)
    time.sleep(60)
"""
LISTING = {"postgres": "SELECT datname FROM pg_database", "mariadb": "SHOW DATABASES"}


@pytest.fixture(params=LABELS)
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def proxy(postgres: Server) -> Iterator[FaultProxy]:
    postgres.execute("DROP TABLE IF EXISTS line", "CREATE TABLE line (n int)")
    with FaultProxy(postgres.host, postgres.port) as proxy:
        yield proxy


def through(proxy: FaultProxy, server: Server) -> psycopg.Connection[Any]:
    return psycopg.connect(server.dsn.replace(f":{server.port}/", f":{proxy.port}/"))


def rows(server: Server) -> list[int]:
    return [n for (n,) in server.execute("SELECT n FROM line")]


def test_each_run_has_a_database_of_its_own(server: Server) -> None:
    connected = "current_database()" if server.kind == "postgres" else "database()"
    assert server.execute(f"SELECT {connected}") == [(server.database,)]
    assert server.database.startswith(f"transept_test_{os.getpid()}_")


def test_the_database_is_dropped_at_the_end_though_a_transaction_is_open(server: Server) -> None:
    servers = Servers()
    second = servers.find(server.kind)
    assert second is not None
    with closing(second.connect()) as forgotten:
        forgotten.cursor().execute("CREATE TABLE kept (n int)")
        for statement in ("BEGIN", "INSERT INTO kept VALUES (1)"):
            forgotten.cursor().execute(statement)
        assert (second.database,) in server.execute(LISTING[server.kind])
        servers.close()
        assert (second.database,) not in server.execute(LISTING[server.kind])
        assert (server.database,) in server.execute(LISTING[server.kind])


@pytest.mark.parametrize("kind", LABELS)
def test_a_named_server_that_does_not_answer_is_an_error(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = VARIABLES[kind]
    monkeypatch.setenv(variable, f"{kind}://someone:hunter2@127.0.0.1:9/test")
    with pytest.raises(NoServerError, match=variable) as raised:
        Servers().find(kind)
    assert "hunter2" not in str(raised.value)


def test_a_named_server_is_understood_with_its_password() -> None:
    server = named("mariadb", "mariadb://ann:p%40ss@db.example:3307/shop")
    assert server.url("asyncmy") == "mysql+asyncmy://ann:p%40ss@db.example:3307/shop"
    assert server.dsn == "mysql://ann:p%40ss@db.example:3307/shop"
    assert "p@ss" not in repr(server)


@pytest.mark.parametrize("kind", LABELS)
def test_a_server_that_is_nowhere_is_left_out_with_the_reason(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLES[kind], raising=False)
    monkeypatch.setitem(USUAL, kind, replace(USUAL[kind], port=9))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    servers = Servers()
    assert servers.find(kind) is None
    assert servers.why_not(kind).startswith(f"no {LABELS[kind]}; tried 127.0.0.1")


@pytest.mark.parametrize("start", STARTERS)
def test_a_server_of_our_own_runs_beside_any_other_and_leaves_nothing(start: Starter) -> None:
    with start() as own:
        assert own.port not in (5432, 3306)
        where = "SHOW data_directory" if own.kind == "postgres" else "SELECT @@datadir"
        data = Path(own.execute(where)[0][0])
        assert data.exists()
    assert not data.parent.exists()
    assert not answers(own)


def test_a_server_of_our_own_ends_when_this_process_is_killed() -> None:
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        own = Server("postgres", "127.0.0.1", int(process.stdout.readline()), "postgres", database="postgres")
        data = Path(own.execute("SHOW data_directory")[0][0])
        process.kill()
    eventually(lambda: not answers(own))
    eventually(lambda: not data.parent.exists())


def answers(server: Server) -> bool:
    try:
        server.connect().close()
    except NoServerError:
        return False
    return True


def eventually(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_line_without_fault_carries_everything(proxy: FaultProxy, postgres: Server) -> None:
    with through(proxy, postgres) as connection:
        connection.execute("INSERT INTO line VALUES (1)")
        assert connection.execute("SELECT repeat('x', 1000000)").fetchone() == ("x" * 1_000_000,)
    assert rows(postgres) == [1]
    assert proxy.hits == 0


@pytest.mark.parametrize(("fault", "kept"), [("cut_before", []), ("cut_after", [1])])
def test_a_cut_at_commit_looks_alike_whether_or_not_it_is_kept(
    proxy: FaultProxy, postgres: Server, fault: Fault, kept: list[int]
) -> None:
    with closing(through(proxy, postgres)) as connection:
        connection.execute("INSERT INTO line VALUES (1)")
        proxy.on(b"commit", fault)
        with pytest.raises(psycopg.OperationalError, match=r"reset|closed"):
            connection.commit()
    assert proxy.hits == 1
    eventually(lambda: rows(postgres) == kept)
    proxy.clear()
    with through(proxy, postgres) as connection:
        connection.execute("INSERT INTO line VALUES (2)")
    assert rows(postgres) == [*kept, 2]


def test_a_held_commit_is_kept_only_when_it_is_released(proxy: FaultProxy, postgres: Server) -> None:
    with closing(through(proxy, postgres)) as connection:
        connection.execute("INSERT INTO line VALUES (1)")
        proxy.on(b"COMMIT", "hold")
        commit = threading.Thread(target=connection.commit)
        commit.start()
        eventually(lambda: proxy.hits == 1)
        assert rows(postgres) == []
        proxy.release()
        commit.join(10)
    assert rows(postgres) == [1]


def test_a_commit_held_until_all_lines_are_cut_is_not_kept(proxy: FaultProxy, postgres: Server) -> None:
    lost: list[psycopg.OperationalError] = []

    def commit() -> None:
        try:
            connection.commit()
        except psycopg.OperationalError as error:
            lost.append(error)

    with closing(through(proxy, postgres)) as connection:
        connection.execute("INSERT INTO line VALUES (1)")
        proxy.on(b"COMMIT", "hold")
        thread = threading.Thread(target=commit)
        thread.start()
        eventually(lambda: proxy.hits == 1)
        proxy.cut_all()
        thread.join(10)
    assert len(lost) == 1
    assert rows(postgres) == []


def test_a_servers_last_words_reach_the_client(proxy: FaultProxy, postgres: Server) -> None:
    with closing(through(proxy, postgres)) as connection:
        postgres.execute(f"SELECT pg_terminate_backend({connection.info.backend_pid})")
        with pytest.raises(psycopg.OperationalError, match="administrator"):
            connection.execute("SELECT 1")
