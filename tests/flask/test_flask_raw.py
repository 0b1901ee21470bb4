"""SQL-first databases in a Flask app: each driver in plain views, and those that are awaited in async views, too."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from contract.families.raw_aiosqlite import RawAiosqlite
from contract.families.raw_asyncpg import RawAsyncpg
from contract.families.raw_mysql import RawAsyncmy, RawPyMySQL
from contract.families.raw_psycopg import RawPsycopgAsync, RawPsycopgSync
from contract.families.raw_sqlite3 import RawSqlite3
from flask import Flask, stream_with_context
from flask_site import Held
from held import File, insert, out_of_pool
from raw_databases import RawDatabase, raw_database
from servers.ports import free
from sqlalchemy import func, select
from werkzeug.test import Client

from transept import (
    ConcurrentUseError,
    DatabaseUnavailable,
    ImproperConfigurationError,
    OutsideScope,
    PartlyCommitted,
    Registry,
    SQLError,
    UsageError,
    db_session,
)
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig
from transept.adapters.pymysql import PyMysqlConfig
from transept.adapters.sqlite import SqliteConfig
from transept.config import FlaskConfig
from transept.context import CURRENT
from transept.errors import BlockingCallWarning, IntegrityError, NotFoundError, UniqueViolationError
from transept.extensions.flask import Transept
from transept.sql.connection import BlockingConnection, Connection
from transept.sql.session import BlockingSQLSession, SQLSession

INSERT = "INSERT INTO held VALUES (?)"
ALL = "SELECT v FROM held ORDER BY v"


@dataclass(frozen=True)
class Driver:
    """Its configuration, the driver whose fixture makes the same tables, and how its pool is looked at."""

    config: Any
    tables: str
    family: Any


DRIVERS = {
    "sqlite3": Driver(SqliteConfig, "aiosqlite", RawSqlite3()),
    "psycopg": Driver(PsycopgSyncConfig, "psycopg", RawPsycopgSync()),
    "pymysql": Driver(PyMysqlConfig, "asyncmy", RawPyMySQL()),
    "aiosqlite": Driver(AiosqliteConfig, "aiosqlite", RawAiosqlite()),
    "asyncpg": Driver(AsyncpgConfig, "asyncpg", RawAsyncpg()),
    "psycopg-async": Driver(PsycopgAsyncConfig, "psycopg", RawPsycopgAsync()),
    "asyncmy": Driver(AsyncmyConfig, "asyncmy", RawAsyncmy()),
}
AWAITED = [name for name, driver in DRIVERS.items() if not driver.config.blocking]


@dataclass
class Raw:
    """The tables of one driver, and the apps that a test makes over them."""

    name: str
    tables: RawDatabase
    apps: list[tuple[Transept, list[Any]]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def driver(self) -> Driver:
        return DRIVERS[self.name]

    @property
    def db(self) -> Transept:
        return self.apps[-1][0]

    def config(self, **settings: Any) -> Any:
        return self.driver.config(**{"pool_config": self.tables.pool_config, "commit_mode": "autocommit", **settings})

    def app(self, *configs: Any, **options: Any) -> Flask:
        """An app over these databases; without any, over this driver's."""
        app = Flask("raw")
        databases = list(configs) or [self.config()]
        self.apps.append((Transept(databases, app, **options), databases))
        return app

    def serving(self, view: Callable[..., Any], **settings: Any) -> Client:
        """A client of an app that has this view, over this driver's database."""
        app = self.app(self.config(**settings))
        app.add_url_rule("/", view_func=view, methods=["GET", "POST"])
        return Client(app)

    def held(self) -> list[int]:
        return self.tables.held()

    def out(self) -> int:
        """How many connections are out of all pools."""
        return sum(_out(config) for _, configs in self.apps for config in configs)

    def close(self) -> None:
        assert self.out() == 0
        assert CURRENT.get() is None
        for db, _ in self.apps:
            db.close()
        assert [thread.name for thread in threading.enumerate() if thread.name == "transept-loop"] == []


def _out(config: Any) -> int:
    family = next((driver.family for driver in DRIVERS.values() if type(config) is driver.config), None)
    return out_of_pool(config) if family is None else int(family.checked_out(config))


def made(name: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Raw]:
    for tables in raw_database(DRIVERS[name].tables, request, folder, "held"):
        raw = Raw(name, tables)
        yield raw
        raw.close()


@pytest.fixture(params=DRIVERS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    yield from made(request.param, request, tmp_path)


@pytest.fixture(params=AWAITED)
def awaited(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    yield from made(request.param, request, tmp_path)


@pytest.fixture
def asyncpg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    yield from made("asyncpg", request, tmp_path)


@pytest.fixture
def aiosqlite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    yield from made("aiosqlite", request, tmp_path)


@pytest.fixture(params=["psycopg", "asyncpg", "psycopg-async"])
def deferring(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    """A table whose second equal row shows only at COMMIT."""
    for raw in made(request.param, request, tmp_path):
        raw.tables.sees("ALTER TABLE held ADD CONSTRAINT once UNIQUE (v) DEFERRABLE INITIALLY DEFERRED")
        yield raw


@dataclasses.dataclass
class Row:
    v: int


# Sessions


def test_a_plain_view_has_a_blocking_session_of_each_driver(raw: Raw):
    def view():
        session = raw.db.get_session()
        assert type(session) is BlockingSQLSession
        assert session is raw.db.get_session("default")
        session.begin()
        session.execute(INSERT, 1)
        session.execute_many(INSERT, [(2,), (3,)])
        session.execute_script("INSERT INTO held VALUES (4); INSERT INTO held VALUES (5)")
        assert session.select(ALL) == [{"v": v} for v in (1, 2, 3, 4, 5)]
        assert session.select(ALL, schema_type=Row)[0] == Row(1)
        assert session.select_one("SELECT v FROM held WHERE v = :v", v=2) == {"v": 2}
        assert session.select_one_or_none("SELECT v FROM held WHERE v = ?", 9) is None
        assert session.select_value("SELECT count(*) FROM held") == 5
        assert session.select_value_or_none("SELECT v FROM held WHERE v = ?", 9) is None
        assert session.select_with_total(f"{ALL} LIMIT 2", schema_type=Row) == ([Row(1), Row(2)], 5)
        with pytest.raises(NotFoundError):
            session.select_one("SELECT v FROM held WHERE v = ?", 9)
        with session.stream(ALL, chunk_size=2) as stream:
            assert [row["v"] for row in stream] == [1, 2, 3, 4, 5]
        with pytest.raises(KeyError), session.transaction():
            session.execute(INSERT, 6)
            raise KeyError
        with session.transaction():
            session.execute(INSERT, 7)
        return "made", 201

    assert raw.serving(view).post("/").status_code == 201
    assert raw.held() == [1, 2, 3, 4, 5, 7]


def test_an_async_view_has_the_drivers_own_session(awaited: Raw):
    async def view():
        session = awaited.db.get_session()
        assert type(session) is SQLSession
        assert session is awaited.db.get_session("default")
        await session.begin()
        await session.execute(INSERT, 1)
        await session.execute_many(INSERT, [(2,), (3,)])
        await session.execute_script("INSERT INTO held VALUES (4); INSERT INTO held VALUES (5)")
        assert await session.select(ALL, schema_type=Row) == [Row(v) for v in (1, 2, 3, 4, 5)]
        assert await session.select_one("SELECT v FROM held WHERE v = :v", v=2) == {"v": 2}
        assert await session.select_value("SELECT count(*) FROM held") == 5
        assert await session.select_with_total(f"{ALL} LIMIT 2") == ([{"v": 1}, {"v": 2}], 5)
        async with session.stream(ALL, chunk_size=2) as stream:
            assert [row["v"] async for row in stream] == [1, 2, 3, 4, 5]
        with pytest.raises(KeyError):
            async with session.transaction():
                await session.execute(INSERT, 6)
                raise KeyError
        async with session.transaction():
            await session.execute(INSERT, 7)
        return "made", 201

    assert awaited.serving(view).post("/").status_code == 201
    assert awaited.held() == [1, 2, 3, 4, 5, 7]


def test_in_manual_mode_a_plain_view_commits_and_rolls_back_itself(raw: Raw):
    def view():
        session, connection = raw.db.get_session(), raw.db.get_connection()
        session.execute(INSERT, 1)
        session.commit()
        session.execute(INSERT, 2)
        session.rollback()
        session.execute(INSERT, 3)
        connection.commit()
        connection.execute(INSERT, 4)
        connection.rollback()
        session.execute(INSERT, 5)
        connection.close()
        return "made", 409

    assert raw.serving(view, commit_mode="manual").post("/").status_code == 409
    assert raw.held() == [1, 3]


def test_in_manual_mode_an_async_view_commits_and_rolls_back_itself(awaited: Raw):
    async def view():
        session, connection = awaited.db.get_session(), awaited.db.get_connection()
        await session.execute(INSERT, 1)
        await session.commit()
        await session.execute(INSERT, 2)
        await session.rollback()
        await session.execute(INSERT, 3)
        await connection.commit()
        await connection.execute(INSERT, 4)
        await connection.rollback()
        return "made", 409

    assert awaited.serving(view, commit_mode="manual").post("/").status_code == 409
    assert awaited.held() == [1, 3]


def test_a_forgotten_commit_is_warned_of_and_not_kept(raw: Raw, caplog: pytest.LogCaptureFixture):
    def view():
        raw.db.get_session().execute(INSERT, 1)
        return "made", 201

    assert raw.serving(view, commit_mode="manual").post("/").status_code == 201
    assert raw.held() == []
    assert [record.levelno for record in caplog.records if "POST /" in record.getMessage()] == [logging.WARNING]


def test_async_and_plain_functions_of_one_request_are_in_one_transaction(awaited: Raw):
    async def view():
        await awaited.db.get_session().execute(INSERT, 2)
        return "made", 201

    client = awaited.serving(view)
    app: Any = client.application

    @app.before_request
    def before():
        awaited.db.get_session().execute(INSERT, 1)

    @app.after_request
    def after(response: Any) -> Any:
        response.set_data(str(awaited.db.get_session().select_value("SELECT count(*) FROM held")))
        return response

    assert client.post("/").text == "2"
    assert awaited.held() == [1, 2]


# The driver's connection


def test_a_plain_view_has_the_drivers_connection(raw: Raw):
    def view():
        connection = raw.db.get_connection()
        assert type(connection) is BlockingConnection
        assert connection is raw.db.get_connection("default")
        raw.db.get_session().execute(INSERT, 1)
        assert connection.execute("SELECT v FROM held WHERE v = ?", 1).fetchone() == (1,)
        with connection.cursor() as cursor:
            cursor.executemany(INSERT, [(2,), (3,)])
            cursor.execute(ALL)
            assert [column[0] for column in cursor.description] == ["v"]
            assert (cursor.fetchmany(2), list(cursor), cursor.fetchone()) == ([(1,), (2,)], [(3,)], None)
        with pytest.raises(KeyError), connection.transaction():
            connection.execute(INSERT, 4)
            raise KeyError
        with pytest.raises(AttributeError, match="comit"):
            connection.comit  # noqa: B018
        return str(passed_through(connection)), 201

    response = raw.serving(view).post("/")
    assert (response.status_code, response.text) == (201, "3")
    assert raw.held() == [1, 2, 3]


def passed_through(connection: Any) -> Any:
    """How many rows there are, by the driver's own means, with what it awaits awaited for us."""
    driver = connection._handle.database.driver_connection.__module__.partition(".")[0]
    if driver == "asyncpg":
        assert connection.is_closed() is False
        return connection.fetchval("SELECT count(*) FROM held")
    if driver == "aiosqlite":
        assert connection.in_transaction is True
        return connection.execute_fetchall("SELECT count(*) FROM held")[0][0]
    if driver == "psycopg":
        assert connection.info.transaction_status.name == "INTRANS"
        return connection.execute("SELECT count(*) FROM held").fetchone()[0]
    if driver == "sqlite3":
        assert connection.in_transaction is True
        connection.create_function("same", 1, lambda value: value)
        return connection.execute("SELECT same(count(*)) FROM held").fetchone()[0]
    connection.ping(reconnect=False)
    return connection.execute("SELECT count(*) FROM held").fetchone()[0]


def test_an_async_view_has_the_drivers_connection(awaited: Raw):
    async def view():
        connection = awaited.db.get_connection()
        assert type(connection) is Connection
        await awaited.db.get_session().execute(INSERT, 1)
        cursor = await connection.execute(ALL)
        assert await cursor.fetchall() == [(1,)]
        async with connection.cursor() as cursor:
            await cursor.executemany(INSERT, [(2,), (3,)])
            await cursor.execute(ALL)
            assert [row async for row in cursor] == [(1,), (2,), (3,)]
        with pytest.raises(KeyError):
            async with connection.transaction():
                await connection.execute(INSERT, 4)
                raise KeyError
        return "made", 201

    assert awaited.serving(view).post("/").status_code == 201
    assert awaited.held() == [1, 2, 3]


def test_both_colours_of_connection_are_one_transaction(awaited: Raw):
    async def view():
        await awaited.db.get_connection().execute(INSERT, 2)
        await awaited.db.get_connection().rollback()
        await awaited.db.get_connection().execute(INSERT, 3)
        return "made", 201

    client = awaited.serving(view)
    app: Any = client.application
    app.before_request(lambda: awaited.db.get_connection().execute(INSERT, 1) and None)
    assert client.post("/").status_code == 201
    assert awaited.held() == [3]


def test_an_error_of_the_drivers_own_method_is_the_drivers(asyncpg: Raw):
    import asyncpg as driver

    def view():
        with pytest.raises(driver.UndefinedTableError):
            asyncpg.db.get_connection().fetch("SELECT * FROM nowhere")
        return "made", 201

    assert asyncpg.serving(view).post("/").status_code == 500
    assert asyncpg.held() == []


# Outcomes


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"commit_mode": "autocommit"}, [201]),
        ({"commit_mode": "autocommit_include_redirect"}, [201, 303]),
        ({"extra_commit_statuses": {409}, "extra_rollback_statuses": {201}}, [409]),
    ],
    ids=["autocommit", "redirect", "extra"],
)
def test_the_status_decides(raw: Raw, settings: dict[str, Any], kept: list[int]):
    def view():
        raw.db.get_session().execute(INSERT, raw.statuses[0])
        return "", raw.statuses.pop(0)

    raw.statuses = [201, 303, 409, 500]
    client = raw.serving(view, **settings)
    assert [client.post("/").status_code for _ in range(4)] == [201, 303, 409, 500]
    assert raw.held() == kept


def test_the_status_decides_in_async_views(awaited: Raw):
    async def view():
        await awaited.db.get_session().execute(INSERT, awaited.statuses[0])
        return "", awaited.statuses.pop(0)

    awaited.statuses = [201, 409]
    client = awaited.serving(view)
    assert [client.post("/").status_code for _ in range(2)] == [201, 409]
    assert awaited.held() == [201]


def test_an_error_rolls_back(raw: Raw):
    def view():
        raw.db.get_session().execute(INSERT, 1)
        raise LookupError

    assert raw.serving(view).post("/").status_code == 500
    assert raw.held() == []


def test_a_violation_is_answered_by_the_apps_handler(raw: Raw):
    raw.tables.sees("CREATE UNIQUE INDEX held_once ON held (v)")

    def view():
        raw.db.get_session().execute(INSERT, 1)
        raw.db.get_session().execute(INSERT, 1)

    client = raw.serving(view)
    app: Any = client.application
    app.register_error_handler(IntegrityError, lambda error: (f"{type(error).__name__} {error.database}", 409))
    response = client.post("/")
    assert (response.status_code, response.text) == (409, "UniqueViolationError default")
    assert raw.held() == []


def test_a_violation_that_shows_at_commit_is_answered_by_the_apps_handler(deferring: Raw):
    def view():
        deferring.db.get_session().execute_many(INSERT, [(1,), (1,)])
        return "made", 201

    async def async_view():
        await deferring.db.get_session().execute_many(INSERT, [(1,), (1,)])
        return "made", 201

    for one in (view,) if deferring.driver.config.blocking else (view, async_view):
        assert deferring.serving(one).post("/").status_code == 500
        client = deferring.serving(one)
        app: Any = client.application
        app.register_error_handler(IntegrityError, lambda error: (type(error).__name__, 409))
        response = client.post("/")
        assert (response.status_code, response.text) == (409, "UniqueViolationError")
    assert deferring.held() == []


DOWN = {
    "asyncpg": "postgresql://nobody@127.0.0.1:{}/x",
    "psycopg": "postgresql://nobody@127.0.0.1:{}/x?connect_timeout=2",
    "psycopg-async": "postgresql://nobody@127.0.0.1:{}/x?connect_timeout=2",
    "pymysql": "mysql://nobody@127.0.0.1:{}/x",
    "asyncmy": "mysql://nobody@127.0.0.1:{}/x",
}


@pytest.mark.parametrize("driver", DOWN)
def test_a_database_that_is_down_is_503_or_what_the_app_makes_of_it(driver: str):
    def view():
        db.get_session().execute("SELECT 1")

    async def async_view():
        await db.get_session().execute("SELECT 1")

    def unused():
        db.get_session()
        db.get_connection()
        return "well"

    def app_of() -> Flask:
        app = Flask("down")
        app.add_url_rule("/", view_func=view)
        app.add_url_rule("/unused", view_func=unused)
        app.add_url_rule("/async", view_func=async_view)
        db.init_app(app)
        return app

    config = DRIVERS[driver].config(pool_config={"dsn": DOWN[driver].format(free())}, pool_timeout=2)
    db = Transept(config)
    app, with_handler = app_of(), app_of()
    with_handler.register_error_handler(DatabaseUnavailable, lambda error: (error.database, 418))
    paths = ["/"] if config.blocking else ["/", "/async"]
    for path in paths:
        response = Client(app).get(path)
        assert (response.status_code, response.headers["retry-after"].isdigit()) == (503, True)
        assert (Client(with_handler).get(path).status_code) == 418
    assert Client(app).get("/unused").status_code == 200
    db.close()


SLEEP = {"asyncpg": "SELECT pg_sleep(5)", "psycopg-async": "SELECT pg_sleep(5)", "asyncmy": "SELECT sleep(5)"}


@pytest.fixture(params=SLEEP)
def sleeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Raw]:
    yield from made(request.param, request, tmp_path)


@pytest.mark.parametrize("colour", ["plain", "async"])
def test_what_takes_longer_than_the_timeout_is_503_and_leaves_nothing(sleeping: Raw, colour: str):
    def view():
        sleeping.db.get_session().execute(INSERT, 1)
        sleeping.db.get_session().execute(SLEEP[sleeping.name])
        return "made", 201

    async def async_view():
        await sleeping.db.get_session().execute(INSERT, 1)
        await sleeping.db.get_session().execute(SLEEP[sleeping.name])
        return "made", 201

    app = sleeping.app(sleeping.config(), timeout=0.5)
    app.add_url_rule("/", view_func=view if colour == "plain" else async_view, methods=["POST"])
    app.add_url_rule("/rows", view_func=lambda: sleeping.db.get_session().select(ALL))
    began = time.monotonic()
    response = Client(app).post("/")
    assert (response.status_code, time.monotonic() - began < 4) == (503, True)
    assert "too long" in response.text
    assert (sleeping.out(), sleeping.held(), Client(app).get("/rows").get_json()) == (0, [], [])


# Threads


def test_threads_of_a_view_may_use_its_session_one_after_the_other(raw: Raw):
    def view():
        for v in (1, 2):
            thread = threading.Thread(target=copy_context().run, args=(raw.db.get_session().execute, INSERT, v))
            thread.start()
            thread.join()
        return "made", 201

    assert raw.serving(view).post("/").status_code == 201
    assert raw.held() == [1, 2]


def test_a_session_has_one_user_at_a_time(asyncpg: Raw):
    def view():
        session = asyncpg.db.get_session()
        session.execute(INSERT, 1)
        thread = threading.Thread(target=copy_context().run, args=(session.execute, "SELECT pg_sleep(1)"))
        thread.start()
        under_way = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(1)'"
        while asyncpg.tables.sees(under_way) == []:
            pass
        try:
            with pytest.raises(ConcurrentUseError):
                session.execute(INSERT, 2)
        finally:
            thread.join()
        return "made", 201

    assert asyncpg.serving(view).post("/").status_code == 201
    assert asyncpg.held() == [1]


# Streams


def test_a_stream_is_read_in_the_body(raw: Raw):
    def view():
        def body():
            for row in raw.db.get_session().stream(ALL, chunk_size=2):
                yield f"{row['v']} "

        return stream_with_context(body())

    raw.tables.sees("INSERT INTO held VALUES (1), (2), (3), (4), (5)")
    assert raw.serving(view).get("/").text == "1 2 3 4 5 "


def test_a_client_that_leaves_half_way_leaves_no_connection_out(raw: Raw):
    def view():
        def body():
            for row in raw.db.get_session().stream(ALL, chunk_size=2):
                yield f"{row['v']} "

        return stream_with_context(body())

    raw.tables.sees("INSERT INTO held VALUES (1), (2), (3), (4), (5)")
    response = raw.serving(view).get("/", buffered=False)
    assert next(iter(response.response)) == b"1 "
    assert raw.out() == 1
    response.close()
    assert raw.out() == 0


def test_what_a_body_writes_is_kept_at_its_end(raw: Raw):
    def view():
        def body():
            for v in (1, 2):
                raw.db.get_session().execute(INSERT, v)
                yield f"{v} "

        return stream_with_context(body()), 201

    response = raw.serving(view).post("/", buffered=False)
    chunks = iter(response.response)
    assert (next(chunks), raw.held()) == (b"1 ", [1])
    assert b"".join(chunks) == b"2 "
    response.close()
    assert raw.held() == [1, 2]


def test_a_cursor_that_is_open_when_the_response_starts_is_an_error(raw: Raw):
    def view():
        stream = raw.db.get_session().stream(ALL, chunk_size=1)
        next(stream)
        return stream_with_context(str(row["v"]) for row in stream)

    raw.tables.sees("INSERT INTO held VALUES (1), (2), (3)")
    assert raw.serving(view).get("/").status_code == 500


def test_a_database_may_keep_its_transaction_for_the_body(raw: Raw):
    def view():
        stream = raw.db.get_session().stream(ALL, chunk_size=1)
        first = next(stream)
        return stream_with_context(f"{row['v']} " for row in (first, *stream))

    raw.tables.sees("INSERT INTO held VALUES (1), (2), (3)")
    assert raw.serving(view, keep_transaction_for_body=True).get("/").text == "1 2 3 "


# Several databases


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(("status", "kept"), [(201, [1]), (409, [])])
def test_sqlalchemy_and_a_raw_database_in_one_request_are_settled_together(
    raw: Raw, file: File, colour: str, status: int, kept: list[int]
):
    other = file.sync_config(bind_key="orm") if colour == "sync" else file.config(bind_key="orm")
    app = raw.app(other, raw.config(bind_key="sql"))

    @app.post("/")
    def view():
        raw.db.get_session("orm").add(Held(v=1))
        raw.db.get_session("sql").execute(INSERT, 1)
        count = raw.db.get_session("orm").scalar(select(func.count()).select_from(Held))
        return str(count), status

    response = Client(app).post("/")
    assert (response.status_code, response.text) == (status, "1")
    assert (file.held(), raw.held()) == (kept, kept)


def test_a_sync_and_an_async_database_are_settled_together_in_an_async_view(awaited: Raw, file: File):
    app = awaited.app(file.sync_config(bind_key="orm"), awaited.config(bind_key="sql"))

    @app.post("/")
    async def view():
        awaited.db.get_session("orm").add(Held(v=1))
        await awaited.db.get_session("sql").execute(INSERT, 1)
        return "made", 201

    assert Client(app).post("/").status_code == 201
    assert (file.held(), awaited.held()) == ([1], [1])


def test_a_blocking_session_in_an_async_view_works_and_warns_of_the_line(aiosqlite: Raw, file: File):
    app = aiosqlite.app(file.sync_config(bind_key="orm"), aiosqlite.config(bind_key="sql"))

    @app.post("/")
    async def view():
        aiosqlite.db.get_session("orm").execute(insert(1))
        await aiosqlite.db.get_session("sql").execute(INSERT, 1)
        return "made", 201

    with pytest.warns(BlockingCallWarning) as warned:
        assert Client(app).post("/").status_code == 201
    assert [Path(warning.filename).name for warning in warned] == ["test_flask_raw.py"]
    assert (file.held(), aiosqlite.held()) == ([1], [1])


def test_a_failed_commit_of_one_keeps_nothing_of_the_other(deferring: Raw, file: File):
    app = deferring.app(deferring.config(bind_key="sql"), file.sync_config(bind_key="orm"))

    @app.post("/")
    def view():
        deferring.db.get_session("orm").add(Held(v=1))
        deferring.db.get_session("sql").execute_many(INSERT, [(1,), (1,)])
        return "made", 201

    assert Client(app).post("/").status_code == 500
    assert (file.held(), deferring.held()) == ([], [])


def test_what_is_partly_committed_says_so_to_the_apps_handler(deferring: Raw, file: File):
    app = deferring.app(file.sync_config(bind_key="orm"), deferring.config(bind_key="sql"))
    told: list[PartlyCommitted] = []

    @app.post("/")
    def view():
        deferring.db.get_session("orm").add(Held(v=1))
        deferring.db.get_session("sql").execute_many(INSERT, [(1,), (1,)])
        return "made", 201

    @app.errorhandler(PartlyCommitted)
    def partly(error: PartlyCommitted):
        told.append(error)
        return "partly", 500

    assert Client(app).post("/").text == "partly"
    assert (told[0].committed, told[0].failed) == (("orm",), "sql")
    assert isinstance(told[0].__cause__, UniqueViolationError)
    assert (file.held(), deferring.held()) == ([1], [])


def test_each_database_decides_by_its_own_mode(raw: Raw, file: File):
    app = raw.app(file.sync_config(bind_key="orm", commit_mode="manual"), raw.config(bind_key="sql"))

    @app.post("/")
    def view():
        raw.db.get_session("orm").add(Held(v=1))
        raw.db.get_session("orm").flush()
        raw.db.get_session("sql").execute(INSERT, 1)
        return "made", 201

    assert Client(app).post("/").status_code == 201
    assert (file.held(), raw.held()) == ([], [1])


# Names and settings


def test_a_registry_is_taken_as_it_is_and_its_first_database_is_meant(raw: Raw, file: File):
    registry = Registry()
    config = registry.add_config(raw.config(), "sql")
    second = registry.add_config(file.sync_config(bind_key="orm"))
    app = Flask("registry")
    db = Transept(registry, app)
    raw.apps.append((db, [config, second]))

    @app.post("/")
    def view():
        session = db.get_session()
        session.execute(INSERT, 1)
        return [session is db.get_session(key) for key in ("sql", "sql_session", config)], 201

    assert Client(app).post("/").get_json() == [True] * 3
    with app.app_context():
        with pytest.raises(ImproperConfigurationError, match=r"No configuration found for key 'sqll'.*mean 'sql'"):
            db.get_session("sqll")
        with pytest.raises(ImproperConfigurationError, match="is none of these databases: 'sql', 'orm'"):
            db.get_connection(raw.config(bind_key="another"))
        with pytest.raises(UsageError, match="database 'orm' is a SQLAlchemy one"):
            db.get_connection("orm")
    assert db.config == [config, second]
    assert raw.held() == [1]


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_the_sqlalchemy_accessors_refuse_a_raw_database_by_name(raw: Raw, colour: str):
    app = raw.app()
    with app.app_context(), pytest.raises(ImproperConfigurationError) as refused:
        getattr(raw.db, f"get_{colour}_session")()
    article = "a sync" if colour == "sync" else "an async"
    named = f"Expected {article} config, but got {raw.driver.config.__name__} (database 'default')"
    assert str(refused.value).startswith(named)
    for engine in (raw.db.get_engine, raw.db.get_sync_engine, raw.db.get_async_engine):
        with pytest.raises(ImproperConfigurationError, match=r"but got"):
            engine()


SETTINGS = {"commit_mode": "autocommit", "extra_commit_statuses": {409}, "session_key": "mine"}


@pytest.mark.parametrize("settings", [SETTINGS, FlaskConfig(**SETTINGS)], ids=["dict", "FlaskConfig"])  # type: ignore[typeddict-item]
def test_settings_for_flask_are_the_databases(raw: Raw, settings: Any):
    def view():
        raw.db.get_session("mine").execute(INSERT, raw.statuses[0])
        assert raw.db.get_session("mine") is raw.db.get_session()
        return "", raw.statuses.pop(0)

    config = raw.driver.config(pool_config=raw.tables.pool_config, extension_config={"flask": settings})
    assert (config.session_key, config.connection_key) == ("mine", "mine_connection")
    app = raw.app(config)
    app.add_url_rule("/", view_func=view, methods=["POST"])
    raw.statuses = [201, 400, 409]
    assert [Client(app).post("/").status_code for _ in range(3)] == [201, 400, 409]
    assert raw.held() == [201, 409]


def test_an_unknown_setting_for_flask_is_refused_with_the_nearest():
    settings: Any = {"flask": {"comit_mode": "autocommit"}}
    with pytest.raises(ImproperConfigurationError, match=r"extension_config\['flask'\].*Did you mean 'commit_mode'"):
        AsyncpgConfig(extension_config=settings)


# Outside of requests


def test_an_app_context_is_a_unit_of_work(raw: Raw):
    app = raw.app(raw.config(commit_mode="manual"))
    with app.app_context():
        raw.db.get_session().execute(INSERT, 1)
        assert raw.db.get_connection().execute(ALL).fetchall() == [(1,)]
    with pytest.raises(KeyError), app.app_context():
        raw.db.get_session().execute(INSERT, 2)
        raise KeyError
    assert raw.held() == [1]


def test_with_session_is_a_unit_of_its_own(raw: Raw):
    def view():
        of_the_request = raw.db.get_session()
        assert of_the_request.select_value("SELECT 1") == 1
        with raw.db.with_session() as session:
            assert type(session) is BlockingSQLSession
            assert session is not of_the_request
            session.execute(INSERT, 1)
        with pytest.raises(KeyError), raw.db.with_session() as session:
            session.execute(INSERT, 2)
            raise KeyError
        return "refused", 409

    assert raw.serving(view).get("/").status_code == 409
    with raw.db.with_session() as session:
        session.execute(INSERT, 3)
    assert raw.held() == [1, 3]


def test_a_session_is_over_with_its_request(raw: Raw):
    def view():
        kept.extend((raw.db.get_session(), raw.db.get_connection()))
        kept[0].execute(INSERT, 1)
        return "made", 201

    kept: list[Any] = []
    assert raw.serving(view).post("/").status_code == 201
    for one in kept:
        with pytest.raises(OutsideScope):
            one.execute(INSERT, 2)
        one.rollback()
    assert raw.held() == [1]


def test_with_session_of_an_awaited_database_in_an_async_view_needs_async_with(awaited: Raw):
    async def view():
        async with awaited.db.with_session() as session:
            await session.execute(INSERT, 1)
        with pytest.raises(UsageError), awaited.db.with_session() as session:
            pass
        return type(session).__name__

    assert awaited.serving(view).get("/").text == "SQLSession"
    assert awaited.held() == [1]


def test_sessions_are_reached_by_the_context_api_in_async_views(awaited: Raw):
    async def view():
        session = await db_session(config)
        assert session is awaited.db.get_session()
        await session.execute(INSERT, 1)
        return "made", 201

    config = awaited.config()
    app = awaited.app(config)
    app.add_url_rule("/", view_func=view, methods=["POST"])
    assert Client(app).post("/").status_code == 201
    assert awaited.held() == [1]


# Load


def test_a_hundred_requests_on_three_connections_and_eight_threads_leave_nothing(raw: Raw):
    def view(number: int):
        session = raw.db.get_session()
        session.execute(INSERT, number)
        assert session.select_value("SELECT count(*) FROM held WHERE v = ?", number) == 1
        if number % 4 == 1:
            raise ValueError(number)
        return "", 409 if number % 4 == 3 else 201

    async def async_view(number: int):
        session = raw.db.get_session()
        await session.execute(INSERT, number)
        assert await session.select_value("SELECT count(*) FROM held WHERE v = ?", number) == 1
        if number % 4 == 1:
            raise ValueError(number)
        return "", 409 if number % 4 == 3 else 201

    config = raw.config(pool_config={**raw.tables.pool_config, "max_size": 3}, pool_timeout=50)
    app = raw.app(config)
    app.logger.disabled = True
    app.add_url_rule("/plain/<int:number>", view_func=view, methods=["POST"])
    app.add_url_rule(
        "/async/<int:number>", view_func=view if config.blocking else async_view, methods=["POST"], endpoint="async"
    )

    def call(number: int) -> int:
        colour = "async" if number // 4 % 2 else "plain"
        return Client(app).post(f"/{colour}/{number}").status_code

    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(8))
        statuses = list(threads.map(call, range(100)))
    assert statuses == [(201, 500, 201, 409)[number % 4] for number in range(100)]
    assert raw.held() == [number for number in range(100) if number % 2 == 0]
    assert raw.out() == 0


def test_an_error_of_a_statement_is_one_of_ours_in_both_colours(awaited: Raw):
    async def view():
        with pytest.raises(SQLError) as inside:
            await awaited.db.get_session().select("SELECT nonsense FROM held")
        return type(inside.value).__name__, 400

    client = awaited.serving(view)
    app: Any = client.application
    names: list[str] = []

    @app.after_request
    def after(response: Any) -> Any:
        awaited.db.get_session().rollback()
        with pytest.raises(SQLError) as outside:
            awaited.db.get_session().select("SELECT nonsense FROM held")
        names.append(type(outside.value).__name__)
        return response

    assert client.get("/").text == names[0]
