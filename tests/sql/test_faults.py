"""Whatever the driver, the same failure is the same error, told by its code: each is provoked here for real."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import Any

import aiosqlite
import asyncmy
import asyncpg
import psycopg
import pymysql
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import ports
from servers.proxy import FaultProxy
from servers.server import Server

from transept import errors
from transept.errors import SQLError
from transept.sql import faults
from transept.sql.faults import Fault

pytestmark = pytest.mark.anyio

# One statement for each failure that a single connection can provoke, and what each kind of server calls it.
TABLES = {
    "postgres": (
        "CREATE TABLE faulty (id integer PRIMARY KEY, v integer NOT NULL DEFAULT 0 CHECK (v >= 0), t varchar(3))",
        "CREATE TABLE faulty_child (p integer REFERENCES faulty (id))",
    ),
    "mariadb": (
        "CREATE TABLE faulty (id integer PRIMARY KEY, v integer NOT NULL DEFAULT 0 CHECK (v >= 0), t varchar(3))"
        " ENGINE = InnoDB",
        "CREATE TABLE faulty_child (p integer REFERENCES faulty (id)) ENGINE = InnoDB",
    ),
    "sqlite": (
        "CREATE TABLE faulty (id integer PRIMARY KEY, v integer NOT NULL DEFAULT 0 CHECK (v >= 0), t any) STRICT",
        "CREATE TABLE faulty_child (p integer REFERENCES faulty (id))",
    ),
}
NO_TABLES = ("DROP TABLE IF EXISTS faulty_child", "DROP TABLE IF EXISTS faulty")
FIRST_ROWS = "INSERT INTO faulty (id) VALUES (1), (2)"

STATEMENTS: dict[str, tuple[str, type[SQLError], dict[str, str | int]]] = {
    "a key that is there already": (
        "INSERT INTO faulty (id) VALUES (1)",
        errors.UniqueViolationError,
        {"postgres": "23505", "mariadb": 1062, "sqlite": 1555},
    ),
    "a reference to nothing": (
        "INSERT INTO faulty_child VALUES (99)",
        errors.ForeignKeyViolationError,
        {"postgres": "23503", "mariadb": 1452, "sqlite": 787},
    ),
    "a row that others refer to": (
        "DELETE FROM faulty WHERE id = 1",
        errors.ForeignKeyViolationError,
        {"postgres": "23503", "mariadb": 1451, "sqlite": 787},
    ),
    "NULL": (
        "INSERT INTO faulty (id, v) VALUES (3, NULL)",
        errors.NotNullViolationError,
        {"postgres": "23502", "mariadb": 1048, "sqlite": 1299},
    ),
    "a value that CHECK refuses": (
        "INSERT INTO faulty (id, v) VALUES (3, -1)",
        errors.CheckViolationError,
        {"postgres": "23514", "mariadb": 4025, "sqlite": 275},
    ),
    "a text where a number belongs": (
        "INSERT INTO faulty (id, v) VALUES (3, 'abc')",
        errors.DataError,
        {"postgres": "22P02", "mariadb": 1366, "sqlite": 3091},
    ),
    "a value out of range": (
        "INSERT INTO faulty (id) VALUES (30000000000)",
        errors.DataError,
        {"postgres": "22003", "mariadb": 1264},
    ),
    "a text that is too long": (
        "INSERT INTO faulty (id, t) VALUES (3, 'four')",
        errors.DataError,
        {"postgres": "22001", "mariadb": 1406},
    ),
    "a division by zero": ("SELECT 1 / 0", errors.DataError, {"postgres": "22012"}),
    "wrong syntax": (
        "SELEC 1",
        errors.ProgrammingError,
        {"postgres": "42601", "mariadb": 1064, "sqlite": 1},
    ),
    "a table that is not there": (
        "SELECT * FROM nowhere",
        errors.ProgrammingError,
        {"postgres": "42P01", "mariadb": 1146, "sqlite": 1},
    ),
    "a column that is not there": (
        "SELECT nothing FROM faulty",
        errors.ProgrammingError,
        {"postgres": "42703", "mariadb": 1054, "sqlite": 1},
    ),
    "an error of the app's own": (
        "DO $$ BEGIN RAISE EXCEPTION 'no'; END $$",
        SQLError,
        {"postgres": "P0001"},
    ),
    "a signal of the app's own": ("SIGNAL SQLSTATE '45000'", SQLError, {"mariadb": 1644}),
}


class Door:
    """One connection of a driver: `run` a statement, `close`. Every statement commits by itself until BEGIN."""

    blocking = False

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    async def run(self, sql: str, *values: Any) -> None:
        if self.blocking:
            await asyncio.to_thread(self.execute, sql, *values)
        else:
            await self.execute(sql, *values)

    async def close(self) -> None:
        if self.blocking:
            await asyncio.to_thread(self.connection.close)
        else:
            await self.connection.close()

    def execute(self, sql: str, *values: Any) -> Any:
        return self.connection.execute(sql, *values)


class AsyncpgDoor(Door):
    @classmethod
    async def open(cls, at: Any) -> AsyncpgDoor:
        return cls(await asyncpg.connect(at.dsn, timeout=5))


class PsycopgDoor(Door):
    blocking = True

    @classmethod
    async def open(cls, at: Any) -> PsycopgDoor:
        return cls(await asyncio.to_thread(psycopg.connect, at.dsn, autocommit=True, connect_timeout=5))

    def execute(self, sql: str, *values: Any) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values or None)


def mysql_options(at: Any) -> dict[str, Any]:
    where = {"host": at.host, "port": at.port, "user": at.user, "password": at.password, "database": at.database}
    return {**where, "autocommit": True, "connect_timeout": 5}


class PyMySQLDoor(Door):
    blocking = True

    @classmethod
    async def open(cls, at: Any) -> PyMySQLDoor:
        return cls(await asyncio.to_thread(lambda: pymysql.connect(**mysql_options(at))))

    def execute(self, sql: str, *values: Any) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, values or None)

    async def close(self) -> None:
        with suppress(pymysql.err.Error):
            await super().close()


class AsyncmyDoor(Door):
    @classmethod
    async def open(cls, at: Any) -> AsyncmyDoor:
        return cls(await asyncmy.connect(**mysql_options(at)))

    async def run(self, sql: str, *values: Any) -> None:
        async with self.connection.cursor() as cursor:
            await cursor.execute(sql, values or None)

    async def close(self) -> None:
        await self.connection.ensure_closed()


class SqliteDoor(Door):
    blocking = True

    @classmethod
    async def open(cls, at: Any) -> SqliteDoor:
        options = {"isolation_level": None, "timeout": 0.1, "check_same_thread": False}
        door = cls(await asyncio.to_thread(lambda: sqlite3.connect(at.file, **options)))
        await door.run("PRAGMA foreign_keys = ON")
        return door

    def execute(self, sql: str, *values: Any) -> Any:
        self.connection.execute(sql, values).fetchall()


class AiosqliteDoor(Door):
    @classmethod
    async def open(cls, at: Any) -> AiosqliteDoor:
        connection = aiosqlite.connect(at.file, isolation_level=None, timeout=0.1)
        try:
            door = cls(await connection)
        except sqlite3.Error:
            await asyncio.to_thread(connection._thread.join)  # else its last word finds the loop closed
            raise
        await door.run("PRAGMA foreign_keys = ON")
        return door

    async def run(self, sql: str, *values: Any) -> None:
        async with self.connection.execute(sql, values) as cursor:
            await cursor.fetchall()


@dataclass
class Driver:
    server: str
    door: Any
    of: Callable[[BaseException], Fault | None]


DRIVERS = {
    "asyncpg": Driver("postgres", AsyncpgDoor, faults.of_asyncpg),
    "psycopg": Driver("postgres", PsycopgDoor, faults.of_psycopg),
    "pymysql": Driver("mariadb", PyMySQLDoor, faults.of_mysql),
    "asyncmy": Driver("mariadb", AsyncmyDoor, faults.of_mysql),
    "sqlite3": Driver("sqlite", SqliteDoor, faults.of_sqlite),
    "aiosqlite": Driver("sqlite", AiosqliteDoor, faults.of_sqlite),
}
ON_POSTGRES, ON_MARIADB, ON_SQLITE = (
    [name for name, driver in DRIVERS.items() if driver.server == kind] for kind in ("postgres", "mariadb", "sqlite")
)


@dataclass
class Place:
    """A database with the tables, reached through one driver."""

    driver: Driver
    at: Any
    doors: list[Door] = field(default_factory=list)

    async def open(self, at: Any = None) -> Door:
        door = await self.driver.door.open(at or self.at)
        self.doors.append(door)
        return door

    async def fault(self, doing: Awaitable[Any]) -> Fault:
        """What the error means that this raises."""
        return (await self.caught(doing))[0]

    async def caught(self, doing: Awaitable[Any]) -> tuple[Fault, BaseException]:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - which one is what is asked
            await doing
        fault = self.driver.of(raised.value)
        assert fault is not None, repr(raised.value)
        return fault, raised.value


@dataclass
class FileAt:
    file: str


def made(server: Server) -> None:
    server.execute(*NO_TABLES, *TABLES[server.kind], FIRST_ROWS, "INSERT INTO faulty_child VALUES (1)")


@asynccontextmanager
async def place_of(name: str, request: Any, tmp_path: Any):
    driver = DRIVERS[name]
    if driver.server == "sqlite":
        at: Any = FileAt(str(tmp_path / "faulty.db"))
        with closing(sqlite3.connect(at.file)) as connection:
            for statement in ("PRAGMA journal_mode = WAL", *TABLES["sqlite"], FIRST_ROWS):
                connection.execute(statement)
            connection.execute("INSERT INTO faulty_child VALUES (1)")
            connection.commit()
    else:
        at = request.getfixturevalue(driver.server)
        made(at)
    place = Place(driver, at)
    try:
        yield place
    finally:
        for door in place.doors:
            with suppress(Exception):
                await door.close()
        if driver.server != "sqlite":
            await asyncio.to_thread(at.execute, *NO_TABLES)


@pytest.fixture
async def place(request, tmp_path, name):
    async with place_of(name, request, tmp_path) as made_place:
        yield made_place


@pytest.mark.parametrize(
    ("name", "what"),
    [(name, what) for name, driver in DRIVERS.items() for what in STATEMENTS if driver.server in STATEMENTS[what][2]],
)
async def test_a_statement_that_fails_is_told_by_its_code(place, name, what):
    sql, kind, codes = STATEMENTS[what]
    door = await place.open()
    fault, error = await place.caught(door.run(sql))
    assert fault == Fault(kind, codes[place.driver.server])
    said = faults.sql_error(fault, error, "main", sql)
    assert type(said) is kind
    assert (said.code, said.sql, said.database) == (fault.code, sql, "main")
    assert said.message
    assert "\n" not in said.message
    await door.run("SELECT 1")


UPDATE_FIRST, UPDATE_SECOND = "UPDATE faulty SET v = v + 1 WHERE id = 1", "UPDATE faulty SET v = v + 1 WHERE id = 2"
IMPATIENT = {
    "postgres": "SET lock_timeout = '200ms'",
    "mariadb": "SET innodb_lock_wait_timeout = 1",
    "sqlite": "SELECT 1",
}


@pytest.mark.parametrize("name", DRIVERS)
async def test_a_lock_that_is_not_to_be_had_in_time(place, name):
    holder, waiter = await place.open(), await place.open()
    await holder.run("BEGIN")
    await holder.run(UPDATE_FIRST)
    await waiter.run(IMPATIENT[place.driver.server])
    fault = await place.fault(waiter.run(UPDATE_FIRST))
    code = {"postgres": "55P03", "mariadb": 1205, "sqlite": 5}[place.driver.server]
    assert fault == Fault(errors.LockTimeoutError, code)
    await waiter.run("SELECT 1")


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
async def test_a_lock_that_nobody_waits_for(place, name):
    holder, waiter = await place.open(), await place.open()
    await holder.run("BEGIN")
    await holder.run(UPDATE_FIRST)
    fault = await place.fault(waiter.run("SELECT * FROM faulty WHERE id = 1 FOR UPDATE NOWAIT"))
    assert fault.kind is errors.LockTimeoutError


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
async def test_of_two_transactions_that_wait_for_each_other_one_gives_way(place, name):
    one, two = await place.open(), await place.open()
    for door, first in ((one, UPDATE_FIRST), (two, UPDATE_SECOND)):
        await door.run("BEGIN")
        await door.run(first)
    outcomes = await asyncio.gather(one.run(UPDATE_SECOND), two.run(UPDATE_FIRST), return_exceptions=True)
    [loser] = [outcome for outcome in outcomes if outcome is not None]
    on_mariadb = place.driver.server == "mariadb"
    code = 1213 if on_mariadb else "40P01"
    assert place.driver.of(loser) == Fault(errors.DeadlockError, code, ended=on_mariadb)


async def snapshots(place: Place, begin: str) -> Awaitable[None]:
    """One reads, another writes in between; what remains to be done is the first one's write."""
    one, two = await place.open(), await place.open()
    await one.run(begin)
    await one.run("SELECT * FROM faulty")
    await two.run(UPDATE_FIRST)
    return one.run(UPDATE_FIRST)


@pytest.mark.parametrize("name", ON_POSTGRES)
async def test_a_write_over_a_newer_row(place, name):
    write = await snapshots(place, "BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert await place.fault(write) == Fault(errors.SerializationConflictError, "40001")


@pytest.mark.parametrize("name", ON_SQLITE)
async def test_a_write_over_a_newer_snapshot(place, name):
    write = await snapshots(place, "BEGIN DEFERRED")
    assert await place.fault(write) == Fault(errors.SerializationConflictError, 517)


@pytest.mark.parametrize("name", ON_MARIADB)
async def test_a_write_over_a_newer_record(place, name):
    one, two = await place.open(), await place.open()
    try:
        await one.run("SET innodb_snapshot_isolation = ON")
    except Exception:
        pytest.skip("this MariaDB has no innodb_snapshot_isolation")
    await one.run("BEGIN")
    await one.run("SELECT * FROM faulty")
    await two.run(UPDATE_FIRST)
    fault = await place.fault(one.run(UPDATE_FIRST))
    assert fault == Fault(errors.SerializationConflictError, 1020, ended=True)


@pytest.mark.parametrize("name", ON_POSTGRES)
async def test_a_serializable_transaction_fails_at_commit_and_is_not_in_doubt(place, name):
    one, two = await place.open(), await place.open()
    for door, mine in ((one, 1), (two, 2)):
        await door.run("BEGIN ISOLATION LEVEL SERIALIZABLE")
        await door.run("SELECT sum(v) FROM faulty")
        await door.run(f"UPDATE faulty SET v = v + 1 WHERE id = {mine}")
    await one.run("COMMIT")
    assert await place.fault(two.run("COMMIT")) == Fault(errors.SerializationConflictError, "40001")


TOO_LONG = {
    "postgres": ("SET statement_timeout = '100ms'", "SELECT pg_sleep(5)", "57014"),
    "mariadb": ("SET max_statement_time = 0.1", "SELECT count(*) FROM seq_1_to_100000000 a, seq_1_to_1000000 b", 1969),
}


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
async def test_a_statement_that_takes_longer_than_it_may(place, name):
    setting, slow, code = TOO_LONG[place.driver.server]
    door = await place.open()
    await door.run(setting)
    assert await place.fault(door.run(slow)) == Fault(errors.OperationCancelledError, code)


@pytest.mark.parametrize("name", ["asyncpg"])
async def test_a_statement_that_takes_longer_than_asyncpgs_own_timer(place, name):
    door = await place.open()
    fault, error = await place.caught(door.connection.execute("SELECT pg_sleep(5)", timeout=0.1))
    assert fault == Fault(errors.OperationCancelledError, in_doubt=True)
    assert faults.sql_error(fault, error, "main", None).message == "TimeoutError"
    await door.run("SELECT 1")


@pytest.mark.parametrize("name", ON_SQLITE)
async def test_a_statement_that_is_interrupted(place, name):
    door = await place.open()
    own = door.connection._conn if name == "aiosqlite" else door.connection
    asyncio.get_running_loop().call_later(0.2, own.interrupt)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    assert await place.fault(door.run(endless)) == Fault(errors.OperationCancelledError, 9)


READ_ONLY = {
    "postgres": ("BEGIN READ ONLY", "25006"),
    "mariadb": ("START TRANSACTION READ ONLY", 1792),
    "sqlite": ("PRAGMA query_only = ON", 8),
}


@pytest.mark.parametrize("name", DRIVERS)
async def test_a_write_where_one_may_only_read(place, name):
    begin, code = READ_ONLY[place.driver.server]
    door = await place.open()
    await door.run(begin)
    assert await place.fault(door.run(UPDATE_FIRST)) == Fault(errors.OperationalError, code)


@pytest.mark.parametrize("name", ON_POSTGRES)
async def test_a_statement_in_an_aborted_transaction(place, name):
    door = await place.open()
    await door.run("BEGIN")
    await place.fault(door.run("SELEC 1"))
    assert await place.fault(door.run("SELECT 1")) == Fault(errors.OperationalError, "25P02")


@dataclass
class Elsewhere:
    """The place's server, with some facts changed."""

    server: Server
    changes: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name == "dsn":
            known = {fact: getattr(self, fact) for fact in ("user", "host", "port", "database")}
            return "postgresql://{user}@{host}:{port}/{database}".format(**known)
        return self.changes.get(name) or getattr(self.server, name)


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
async def test_a_server_that_refuses_connections(place, name):
    fault, error = await place.caught(place.open(Elsewhere(place.at, {"port": ports.free()})))
    assert (fault.kind, fault.lost) == (errors.DatabaseUnavailable, True)
    said = faults.sql_error(fault, error, "main", None)
    assert said.code == (2003 if place.driver.server == "mariadb" else None)
    assert "onnect" in said.message


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
async def test_a_server_that_hangs_up(place, name):
    with closing(ports.bound()) as listener:
        listener.listen()

        def hang_up():
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        fault = await place.fault(place.open(Elsewhere(place.at, {"port": listener.getsockname()[1]})))
        assert (fault.kind, fault.lost) == (errors.DatabaseUnavailable, True)
        listener.shutdown(2)


@pytest.mark.parametrize("name", ON_POSTGRES)  # the MySQL drivers' connect timeouts end before the greeting
async def test_a_server_that_never_answers(place, name):
    with closing(ports.bound()) as listener:
        listener.listen()
        at = Elsewhere(place.at, {"port": listener.getsockname()[1]})
        if name == "asyncpg":
            connecting: Awaitable[Any] = asyncpg.connect(at.dsn, timeout=0.3)
        else:
            connecting = asyncio.to_thread(psycopg.connect, at.dsn, connect_timeout=2)
        assert (await place.fault(connecting)).kind is errors.DatabaseUnavailable


@pytest.mark.parametrize(
    ("name", "code"), [("asyncpg", "3D000"), ("psycopg", None), ("pymysql", 1049), ("asyncmy", 1049)]
)
async def test_a_database_that_is_not_there_is_a_wrong_setting_where_the_driver_tells(place, name, code):
    fault = await place.fault(place.open(Elsewhere(place.at, {"database": "faulty_nowhere"})))
    assert fault.code == code
    assert fault.kind is (errors.DatabaseUnavailable if name == "psycopg" else errors.ProgrammingError)


@pytest.mark.parametrize("name", ON_SQLITE)
async def test_a_file_that_cannot_be_opened(place, name):
    fault = await place.fault(place.open(FileAt("/nowhere/at/all.db")))
    assert fault == Fault(errors.DatabaseUnavailable, 14)


async def number(door: Door, name: str) -> int:
    """The server's number of this session."""
    if name == "asyncpg":
        return int(door.connection.get_server_pid())
    if name == "psycopg":
        return int(door.connection.info.backend_pid)
    return int(door.connection.thread_id())


async def end(place: Place, session: int) -> None:
    server = place.at
    if server.kind == "postgres":
        await asyncio.to_thread(server.execute, f"SELECT pg_terminate_backend({session})")
        left = f"SELECT 1 FROM pg_stat_activity WHERE pid = {session}"
    else:
        await asyncio.to_thread(server.execute, f"KILL {session}")
        left = f"SELECT 1 FROM information_schema.processlist WHERE id = {session}"
    while await asyncio.to_thread(server.execute, left):
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
async def test_a_session_that_is_ended_while_it_works(place, name):
    door = await place.open()
    sleep = "SELECT pg_sleep(20)" if place.driver.server == "postgres" else "SELECT sleep(20)"
    working = asyncio.ensure_future(door.run(sleep))
    await asyncio.sleep(0.3)
    await end(place, await number(door, name))
    fault = await place.fault(working)
    assert (fault.kind, fault.lost) == (errors.DatabaseUnavailable, True)
    if place.driver.server == "postgres":
        assert fault.code in ("57P01", "08003")  # an older asyncpg keeps the server's own to itself


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
@pytest.mark.parametrize("then", ["SELECT 1", "COMMIT"])
async def test_a_session_that_was_ended_while_it_was_idle(place, name, then):
    door = await place.open()
    await door.run("BEGIN")
    await door.run(UPDATE_FIRST)
    await end(place, await number(door, name))
    for again in range(2):
        fault, error = await place.caught(door.run(then))
        assert (fault.kind, fault.lost) == (errors.DatabaseUnavailable, True), error
        if again or place.driver.server == "postgres":
            assert not fault.in_doubt, error  # it was known to be gone, so nothing was sent
        assert faults.sql_error(fault, error, "main", then).message


@pytest.mark.parametrize("name", ["asyncpg"])
@pytest.mark.parametrize("then", ["SELECT 1", "COMMIT"])
async def test_a_session_that_was_ended_while_it_was_taken_from_asyncpgs_pool(place, name, then):
    async with asyncpg.create_pool(place.at.dsn, min_size=0, max_size=1) as pool, pool.acquire() as connection:
        await connection.execute("BEGIN")
        prepared = await connection.prepare("SELECT 1")
        await end(place, connection.get_server_pid())
        await asyncio.sleep(0.1)

        async def use(call, *sql):
            await call(*sql)

        for using in (use(connection.execute, then), use(prepared.fetch)):
            assert await place.fault(using) == Fault(errors.DatabaseUnavailable, lost=True)


@pytest.mark.parametrize("name", ON_SQLITE)
async def test_a_connection_that_was_closed(place, name):
    door = await place.open()
    await door.close()
    assert await place.fault(door.run("SELECT 1")) == Fault(errors.DatabaseUnavailable, lost=True)


@pytest.mark.parametrize("name", ON_POSTGRES + ON_MARIADB)
@pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
async def test_a_commit_whose_answer_never_came_is_in_doubt(place, name, cut):
    with FaultProxy(place.at.host, place.at.port) as proxy:
        door = await place.open(Elsewhere(place.at, {"port": proxy.port}))
        await door.run("BEGIN")
        await door.run(UPDATE_FIRST)
        proxy.on(b"COMMIT", cut)
        fault = await place.fault(door.run("COMMIT"))
        assert (fault.kind, fault.lost, fault.in_doubt) == (errors.DatabaseUnavailable, True, True)


@pytest.mark.parametrize("name", ON_POSTGRES)
async def test_a_commit_that_a_deferred_constraint_refuses_is_not_in_doubt(place, name):
    door = await place.open()
    await door.run("ALTER TABLE faulty_child ALTER CONSTRAINT faulty_child_p_fkey DEFERRABLE INITIALLY DEFERRED")
    await door.run("BEGIN")
    await door.run("INSERT INTO faulty_child VALUES (99)")
    assert await place.fault(door.run("COMMIT")) == Fault(errors.ForeignKeyViolationError, "23503")


MISTAKES: list[tuple[str, str, tuple[Any, ...], type[SQLError]]] = [
    ("asyncpg", "SELECT $1::int", (1, 2), errors.ProgrammingError),
    ("asyncpg", "SELECT $1::int", ("one",), errors.DataError),
    ("psycopg", "SELECT %s", (1, 2), errors.ProgrammingError),
    ("psycopg", "SELECT %s", (object(),), errors.ProgrammingError),
    ("psycopg", "SELECT %s", ("a\0b",), errors.DataError),
    ("pymysql", "SELECT %s", (float("nan"),), errors.ProgrammingError),
    ("asyncmy", "SELECT %s", (float("nan"),), errors.ProgrammingError),
    ("sqlite3", "SELECT ?", (1, 2), errors.ProgrammingError),
    ("aiosqlite", "SELECT ?", (1, 2), errors.ProgrammingError),
    ("sqlite3", "SELECT ?", (object(),), errors.ProgrammingError),
    ("sqlite3", "SELECT ?", (2**80,), errors.DataError),
    ("aiosqlite", "SELECT ?", (2**80,), errors.DataError),
]


@pytest.mark.parametrize(("name", "sql", "values", "kind"), MISTAKES)
async def test_values_that_the_driver_itself_refuses(place, name, sql, values, kind):
    door = await place.open()
    fault = await place.fault(door.run(sql, *values))
    assert fault == Fault(kind, fault.code)
    await door.run("SELECT 1")


@pytest.mark.parametrize("name", ["psycopg"])
async def test_values_that_the_server_counts_are_not_taken_for_a_lost_connection(place, name):
    door = await place.open()
    cursor = psycopg.RawCursor(door.connection)
    fault = await place.fault(asyncio.to_thread(cursor.execute, "SELECT $1::int, $2::int", [1]))
    assert fault == Fault(errors.ProgrammingError, "08P01")
    await door.run("SELECT 1")


@pytest.mark.parametrize("of", {driver.of for driver in DRIVERS.values()}, ids=lambda of: of.__name__)
@pytest.mark.parametrize("error", [TypeError("no"), ValueError("no"), KeyError(1), asyncio.CancelledError()], ids=repr)
def test_an_error_of_the_app_passes_through(of, error):
    assert of(error) is None


@given(st.text(alphabet="0123456789ABCDEFGHPX", min_size=5, max_size=5))
def test_every_sqlstate_has_a_class_and_its_own_kind_wins(code):
    kind = faults.by_sqlstate(code)
    assert issubclass(kind, SQLError)
    if code.startswith("23"):
        assert issubclass(kind, errors.IntegrityError)


@given(st.integers(0, 60000))
def test_every_number_has_a_class(number):
    assert issubclass(faults.by_mysql(number), SQLError)
    assert issubclass(faults.by_sqlite(number), SQLError)
    assert faults.by_mysql(2000 + number % 1000) in (errors.DatabaseUnavailable, errors.ProgrammingError)


def test_without_a_code_no_server_answered_and_sqlite_was_not_asked():
    assert faults.by_sqlstate(None) is faults.by_mysql(None) is errors.DatabaseUnavailable
    assert faults.by_sqlite(None) is errors.ProgrammingError
