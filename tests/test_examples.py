"""The example apps: every route is called, and a second connection looks at the table."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from flask.testing import FlaskClient, FlaskCliRunner
from litestar.testing import TestClient as LitestarClient
from servers import started
from servers.server import NoServerError, Server
from sqlalchemy import text
from starlette.testclient import TestClient

from transept.extensions.fastapi import add_fastapi_http_db_session_middleware

ROOT = Path(__file__).parents[1]
APPS = ("context_fastapi", "context_starlette", "context_asgi")
TOLD_AND_HELD = {
    "simple_usage": (200, ["simple", "simple, same transaction"]),
    "atomic_base_example": (200, ["atomic"]),
    "atomic_and_previous_transaction": (
        200,
        ["before commit", "in commit", "in rollback", "before append", "in append", "before raise"],
    ),
    "early_commit": (200, ["committed early", "committed with the request"]),
    "early_rollback": (200, ["after the rollback"]),
    "early_connection_close": (200, ["before the slow part", "after the slow part"]),
    "concurrent_queries": (
        200,
        [
            "the request's own",
            "run_in_new_ctx",
            "in_new_unit",
            "run_in_new_ctx, first step",
            "run_in_new_ctx, second step",
            "new_non_ctx_session",
            "new_non_ctx_atomic_session",
            "create_session",
        ],
    ),
    "auto_rollback_by_exception": (500, []),
    "auto_rollback_by_status_code": (409, []),
}


class Look:
    """A second connection to the apps' database."""

    def __init__(self, url: str, ask: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self.url = url
        self.ask = ask

    def held(self) -> list[str]:
        return [row for (row,) in self.ask("SELECT text FROM example ORDER BY id")]

    def nobody_is_in_the_way(self) -> None:
        """Fails where a transaction is still open."""
        if self.url.startswith("sqlite"):
            self.ask("BEGIN IMMEDIATE")
            return
        others = "SELECT pid, state, query FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = "
        assert self.ask(f"{others} current_database()") == []


class Library(NamedTuple):
    """The example on Flask: by HTTP, by the command line, and its database."""

    client: FlaskClient
    runner: FlaskCliRunner
    look: Look


@pytest.fixture(params=["sqlite", "postgres"])
def look(request: pytest.FixtureRequest, tmp_path: Path) -> Look:
    if request.param == "postgres":
        server: Server = request.getfixturevalue("postgres")
        server.execute("DROP TABLE IF EXISTS example")
        return Look(server.url("asyncpg"), server.execute)

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / "example.db", timeout=0)) as connection:
            return connection.execute(sql).fetchall()

    return Look(f"sqlite+aiosqlite:///{tmp_path / 'example.db'}", ask)


@pytest.fixture
def examples(look: Look, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module of the examples anew, over this test's database."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("EXAMPLE_DATABASE", look.url)
    monkeypatch.delenv("EXAMPLE_REPLICA", raising=False)
    forget()
    yield import_module
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("context_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", APPS)
def test_every_route_keeps_what_it_says(name: str, examples: Callable[[str], Any], look: Look) -> None:
    with TestClient(examples(f"{name}.app").app, raise_server_exceptions=False) as client:
        told = []
        for route, (status, rows) in TOLD_AND_HELD.items():
            before = look.held()
            assert client.post(f"/{route}").status_code == status, route
            assert sorted(look.held()[len(before) :]) == sorted(rows), route
            look.nobody_is_in_the_way()
            told.append(route)
        assert client.get("/rows").json() == look.held()
        assert told == [one.__name__ for one in examples("context_shared.routes").POST]


@pytest.mark.parametrize("look", ["postgres"], indirect=True)
@pytest.mark.parametrize("name", APPS)
def test_the_engine_is_closed_with_the_app(name: str, examples: Callable[[str], Any], look: Look) -> None:
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = look.ask(count)
    with TestClient(examples(f"{name}.app").app) as client:
        client.post("/simple_usage")
        assert look.ask(count) > before
    wait_for(lambda: look.ask(count) <= before)


def test_a_client_reads_what_it_has_written(examples: Callable[[str], Any]) -> None:
    with TestClient(examples("context_fastapi.app").app) as client:
        assert client.post("/read_own_writes").status_code == 200
        assert client.get("/read_own_writes").json() == {"asked": "replica", "rows": ["mine"]}


@pytest.mark.parametrize("look", ["postgres"], indirect=True)
def test_the_position_that_the_client_carries_covers_the_commit(examples: Callable[[str], Any]) -> None:
    """It lies behind the one that was reached when the transaction had written and not yet committed."""
    app = examples("context_fastapi.app").app
    reached: list[str] = []

    async def before_commit(session: Any) -> None:
        reached.append(await session.scalar(text("SELECT pg_current_wal_insert_lsn()::text")))

    add_fastapi_http_db_session_middleware(app, before_commit)
    with TestClient(app) as client:
        for _ in range(20):
            reached.clear()
            position = client.post("/read_own_writes").cookies["written_at"].strip('"')
            assert number(position) > number(reached[0])


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """A PostgreSQL and its replica."""
    try:
        with started.postgres() as primary, started.replica(primary) as replica:
            yield primary, replica
    except NoServerError as error:
        pytest.skip(f"needs a PostgreSQL with a replica: {error}")


@pytest.fixture
def replicated(pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """A client of the app, which asks a real replica."""
    primary, replica = pair
    primary.execute("DROP TABLE IF EXISTS example")
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("EXAMPLE_DATABASE", primary.url("asyncpg"))
    monkeypatch.setenv("EXAMPLE_REPLICA", replica.host)
    forget()
    with TestClient(import_module("context_fastapi.app").app) as client:
        wait_for(lambda: replica.execute("SELECT to_regclass('example') IS NOT NULL") == [(True,)])
        yield client
    forget()


def test_a_replica_that_is_behind_is_not_asked(replicated: TestClient, pair: tuple[Server, Server]) -> None:
    """Except for those who have written nothing."""
    replica = pair[1]
    replica.execute("SELECT pg_wal_replay_pause()")
    try:
        assert replicated.post("/read_own_writes").status_code == 200
        assert replicated.get("/read_own_writes").json() == {"asked": "default", "rows": ["mine"]}
        stranger = replicated.get("/read_own_writes", headers={"cookie": ""}).json()
        assert stranger == {"asked": "replica", "rows": []}
    finally:
        replica.execute("SELECT pg_wal_replay_resume()")
    wait_for(lambda: replicated.get("/read_own_writes").json() == {"asked": "replica", "rows": ["mine"]})


def test_a_client_reads_what_it_has_written_a_hundred_times(replicated: TestClient) -> None:
    for count in range(1, 101):
        assert replicated.post("/read_own_writes").status_code == 200
        assert replicated.get("/read_own_writes").json()["rows"] == ["mine"] * count


@pytest.fixture
def sql_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TestClient, Look]]:
    """A client of the example in SQL, and a second connection to its database."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("EXAMPLE_DATABASE", f"sqlite:///{tmp_path / 'example.db'}")
    sys.modules.pop("sql_first.app", None)

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / "example.db", timeout=0)) as connection:
            return connection.execute(sql).fetchall()

    with TestClient(import_module("sql_first.app").app, raise_server_exceptions=False) as client:
        yield client, Look("sqlite", ask)
    sys.modules.pop("sql_first.app", None)


def test_an_order_in_sql_is_kept_with_its_stock_and_mailed(sql_first: tuple[TestClient, Look]) -> None:
    client, look = sql_first
    told = client.post("/orders", json={"product_id": 1, "quantity": 3, "email": "ada@example.com"})
    assert (told.status_code, told.json()) == (201, {"id": 1})
    assert look.ask("SELECT id, quantity, email FROM orders") == [(1, 3, "ada@example.com")]
    assert look.ask("SELECT stock FROM products ORDER BY id") == [(7,), (4,)]
    assert look.ask("SELECT order_id FROM mails") == [(1,)]
    look.nobody_is_in_the_way()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"product_id": 2, "quantity": 5, "email": "ada@example.com"}, 409),  # the order was written before the stock
        ({"product_id": 2, "quantity": 0, "email": "ada@example.com"}, 409),
        ({"product_id": 9, "quantity": 1, "email": "ada@example.com"}, 422),
        ({"product_id": 2}, 422),
    ],
)
def test_an_order_in_sql_that_is_refused_keeps_nothing(
    sql_first: tuple[TestClient, Look], body: dict[str, Any], status: int
) -> None:
    client, look = sql_first
    assert client.post("/orders", json=body).status_code == status
    assert look.ask("SELECT * FROM orders") == look.ask("SELECT * FROM mails") == []
    assert client.get("/products").json()[1] == {"id": 2, "name": "chair", "stock": 4}
    look.nobody_is_in_the_way()


def test_orders_in_sql_are_listed_shown_and_streamed(sql_first: tuple[TestClient, Look]) -> None:
    client, look = sql_first
    for product_id in (1, 2, 2):
        client.post("/orders", json={"product_id": product_id, "quantity": 1, "email": "ada@example.com"})
    listed = client.get("/orders").json()
    assert [order["product"] for order in listed["orders"]] == ["lamp", "chair", "chair"]
    assert listed["orders"][0]["mailed"] is True
    assert client.get("/orders", params={"product": [2, 3]}).json()["total"] == 2
    assert client.get("/orders", params={"page": 2}).json() == {"orders": [], "total": 3}
    assert client.get("/orders/1").json() == listed["orders"][0]
    assert client.get("/orders/9").status_code == 404
    assert [json.loads(line) for line in client.get("/orders.ndjson").text.splitlines()] == listed["orders"]
    look.nobody_is_in_the_way()


@pytest.fixture
def auction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[LitestarClient[Any], Look]]:
    """A client of the auction with one lot, and a second connection to its database."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("EXAMPLE_DATABASE", f"sqlite+aiosqlite:///{tmp_path / 'example.db'}")
    sys.modules.pop("auction.app", None)

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / "example.db", timeout=0)) as connection:
            return connection.execute(sql).fetchall()

    with LitestarClient(import_module("auction.app").app) as client:
        assert client.post("/lots", json={"name": "lamp"}).json() == {"id": 1, "name": "lamp", "highest": None}
        yield client, Look("sqlite", ask)
    sys.modules.pop("auction.app", None)


def test_a_bid_is_kept_and_who_was_outbid_is_mailed(auction: tuple[LitestarClient[Any], Look]) -> None:
    client, look = auction
    for amount, bidder in ((5, "ada"), (6, "bob")):
        assert client.post("/lots/1/bids", json={"amount": amount, "bidder": bidder}).status_code == 201
    assert look.ask("SELECT amount, bidder FROM bids ORDER BY id") == [(5, "ada"), (6, "bob")]
    assert client.get("/mails").json() == ["ada"]
    assert client.get("/lots").json() == [{"id": 1, "name": "lamp", "highest": 6}]
    look.nobody_is_in_the_way()


@pytest.mark.parametrize(
    ("lot", "amount", "status"),
    [
        (1, 5, 409),  # the bid was written before it was found to be too low
        (1, 0, 422),
        (9, 7, 422),  # there is no such lot, which shows at COMMIT
    ],
)
def test_a_bid_that_is_refused_keeps_nothing(
    auction: tuple[LitestarClient[Any], Look], lot: int, amount: int, status: int
) -> None:
    client, look = auction
    client.post("/lots/1/bids", json={"amount": 5, "bidder": "ada"})
    assert client.post(f"/lots/{lot}/bids", json={"amount": amount, "bidder": "bob"}).status_code == status
    assert look.ask("SELECT amount FROM bids") == [(5,)]
    assert look.ask("SELECT * FROM mails") == []
    look.nobody_is_in_the_way()


def test_a_lot_of_the_same_name_is_refused(auction: tuple[LitestarClient[Any], Look]) -> None:
    client, look = auction
    assert client.post("/lots", json={"name": "lamp"}).status_code == 409
    assert look.ask("SELECT count(*) FROM lots") == [(1,)]


def test_bids_that_come_live_are_kept_before_they_are_acknowledged(auction: tuple[LitestarClient[Any], Look]) -> None:
    client, look = auction
    with client.websocket_connect("/lots/1/live") as socket:
        for amount, told in ((5, "kept"), (4, "refused"), (0, "refused"), (6, "kept")):
            socket.send_text(json.dumps({"amount": amount, "bidder": "ada"}))
            assert socket.receive_text() == told
            look.nobody_is_in_the_way()
        socket.send_text("not a bid")
        assert socket.receive_text() == "refused"
        assert look.ask("SELECT amount FROM bids ORDER BY id") == [(5,), (6,)]


def test_bids_are_streamed(auction: tuple[LitestarClient[Any], Look]) -> None:
    client, look = auction
    for amount in (5, 6, 7):
        client.post("/lots/1/bids", json={"amount": amount, "bidder": "ada"})
    assert client.get("/lots/1/bids.csv").text.splitlines() == ["amount,bidder", "5,ada", "6,ada", "7,ada"]
    assert client.get("/lots/9/bids.csv").status_code == 404
    look.nobody_is_in_the_way()


@pytest.fixture(params=["sqlite", "sqlite+aiosqlite"])
def library(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """A client of the library with one book, over a sync or an async driver, and a second connection."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setenv("EXAMPLE_DATABASE", f"{request.param}:///{tmp_path / 'example.db'}")
    sys.modules.pop("library.app", None)

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(tmp_path / "example.db", timeout=0)) as connection:
            return connection.execute(sql).fetchall()

    module = import_module("library.app")
    client = module.app.test_client()
    assert client.post("/books", json={"title": "Emma", "copies": 2}).json == {"id": 1, "title": "Emma", "copies": 2}
    yield Library(client, module.app.test_cli_runner(), Look("sqlite", ask))
    module.db.close()
    sys.modules.pop("library.app", None)


def test_a_loan_is_kept_and_taken_back(library: Library) -> None:
    client, _, look = library
    for reader in ("ada", "bob"):
        told = client.post("/loans", json={"book_id": 1, "reader": reader})
        assert told.status_code == 201
        assert told.json["due"] == (date.today() + timedelta(days=28)).isoformat()
    assert client.get("/books/1").json == {"title": "Emma", "readers": ["ada", "bob"]}
    assert client.get("/books").json == [{"id": 1, "title": "Emma", "there": 0}]
    assert client.post("/loans/1/return").status_code == 204
    assert client.get("/books").json == [{"id": 1, "title": "Emma", "there": 1}]
    assert client.get("/books/2").status_code == client.post("/loans/7/return").status_code == 404
    assert look.ask("SELECT reader FROM loans WHERE returned IS NULL") == [("bob",)]
    look.nobody_is_in_the_way()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/loans", {"book_id": 1, "reader": "carl"}, 409),  # written before it was found to be one too many
        ("/loans", {"book_id": 7, "reader": "carl"}, 409),  # there is no such book, which shows at COMMIT
        ("/loans", {"book_id": 1}, 422),
        ("/books", {"title": "Emma"}, 409),
        ("/books", {"title": "Ulysses", "copies": 0}, 409),
    ],
)
def test_what_a_library_refuses_is_not_kept(library: Library, path: str, body: dict[str, Any], status: int) -> None:
    client, _, look = library
    for reader in ("ada", "bob"):
        client.post("/loans", json={"book_id": 1, "reader": reader})
    assert client.post(path, json=body).status_code == status
    assert look.ask("SELECT reader FROM loans ORDER BY id") == [("ada",), ("bob",)]
    assert look.ask("SELECT title FROM books") == [("Emma",)]
    look.nobody_is_in_the_way()


def test_loans_are_streamed(library: Library) -> None:
    client, _, look = library
    for reader in ("ada", 'bob "the reader"'):
        client.post("/loans", json={"book_id": 1, "reader": reader})
    due = date.today() + timedelta(days=28)
    told = client.get("/loans.csv").text.splitlines()
    assert told == ["title,reader,due,returned", f"Emma,ada,{due},", f'Emma,"bob ""the reader""",{due},']
    look.nobody_is_in_the_way()


def test_a_command_adds_all_books_or_none(library: Library, tmp_path: Path) -> None:
    _, runner, look = library
    books = tmp_path / "books.csv"
    books.write_text("title,copies\nUlysses,1\nDune,3\n")
    done = runner.invoke(args=["add-books", str(books)])
    assert (done.exit_code, done.output) == (0, "3 books\n")
    books.write_text("title,copies\nPersuasion,1\nMiddlemarch,some\n")
    assert runner.invoke(args=["add-books", str(books)]).exit_code == 1
    assert look.ask("SELECT title, copies FROM books") == [("Emma", 2), ("Ulysses", 1), ("Dune", 3)]
    look.nobody_is_in_the_way()


def wait_for(holds: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def number(position: str) -> int:
    """Of a position in the write-ahead log, as PostgreSQL writes it."""
    high, low = position.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_an_example_that_is_not_there_is_not_run() -> None:
    """The names of those that are there are told."""
    run = subprocess.run(
        [sys.executable, ROOT / "run.py", "example", "context"],
        env=os.environ,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    names = "auction, context_asgi, context_fastapi, context_starlette, library, orders, sql_first"
    told = f"run.py: example needs a name; there are {names}\n"
    assert (run.returncode, run.stderr) == (2, told)
