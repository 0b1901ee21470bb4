"""asyncmy and PyMySQL: each test runs over both."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pymysql.converters import conversions
from servers.ports import free
from servers.server import Server

from transept import Registry
from transept._bridge import run_now
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.pymysql import PyMysqlConfig
from transept.errors import (
    CommitFailed,
    DatabaseUnavailable,
    DeadlockError,
    ImproperConfigurationError,
    LockTimeoutError,
    PoolTimeout,
    ProgrammingError,
    UniqueViolationError,
    UsageError,
)


class Way:
    """One driver on the tests' server."""

    def __init__(self, config: type[Any], run: Callable[[Coroutine[Any, Any, None]], None], server: Server) -> None:
        self.kind = config
        self.run = run
        self.server = server
        self.registry = Registry()
        self.database = self.config()

    def config(self, *, dsn: str | None = None, **settings: Any) -> Any:
        pool = settings.pop("pool", {})
        config = self.kind(
            pool_config={"dsn": dsn or self.server.dsn, **pool}, bind_key=f"n{len(list(self.registry))}", **settings
        )
        self.registry.add_config(config)
        return config

    @asynccontextmanager
    async def session(self, config: Any = None) -> AsyncIterator[Any]:
        async with given(self.registry.provide_session(config or self.database)) as session:
            yield session

    def close(self) -> None:
        if self.kind is PyMysqlConfig:
            for config in self.registry:
                config.close_pool()


@asynccontextmanager
async def given(block: Any) -> AsyncIterator[Any]:
    """What a block gives, which is of the one colour or of the other."""
    if block._database.blocking:
        with block as made:
            yield made
    else:
        async with block as made:
            yield made


async def told(answer: Any) -> Any:
    """What a session answers, at once or when it is awaited."""
    return await answer if inspect.isawaitable(answer) else answer


@asynccontextmanager
async def block(made: Any) -> AsyncIterator[None]:
    """A session's transaction()."""
    if hasattr(made, "__aenter__"):
        async with made:
            yield
    else:
        with made:
            yield


async def read(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__anext__"):
        async for row in stream:
            yield row
    else:
        for row in stream:
            yield row


async def closed(stream: Any) -> None:
    await told(stream.aclose() if hasattr(stream, "aclose") else stream.close())


WAYS: dict[str, Any] = {"asyncmy": (AsyncmyConfig, asyncio.run), "pymysql": (PyMysqlConfig, run_now)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, mariadb: Server) -> Iterator[Way]:
    made = Way(*WAYS[request.param], mariadb)
    mariadb.execute(
        "DROP TABLE IF EXISTS numbers", "CREATE TABLE numbers (id INTEGER PRIMARY KEY, v TEXT) ENGINE=InnoDB"
    )
    yield made
    made.close()


def in_both(test: Callable[[Way], Coroutine[Any, Any, None]]) -> Callable[[Way], None]:
    def run(way: Way) -> None:
        way.run(test(way))

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


def numbers(server: Server) -> list[int]:
    return [number for (number,) in server.execute("SELECT id FROM numbers ORDER BY id")]


class Colour(Enum):
    RED = "red"


@dataclass
class Everything:
    id: int
    uuid: UUID
    moment: datetime
    day: date
    clock: time
    lasts: timedelta
    price: Decimal
    raw: bytes
    facts: dict[str, Any]
    tags: list[str]
    colour: Colour
    active: bool


@in_both
async def test_values_of_every_type_come_back(way: Way) -> None:
    way.server.execute(
        "DROP TABLE IF EXISTS everything",
        "CREATE TABLE everything (id INTEGER PRIMARY KEY AUTO_INCREMENT, uuid CHAR(36), moment DATETIME(6), day DATE,"
        " clock TIME(6), lasts TIME(6), price DECIMAL(12, 4), raw BLOB, facts JSON, tags JSON, colour VARCHAR(10),"
        " active BOOLEAN)",
    )
    moment = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=timezone(timedelta(hours=2)))
    values = {
        "uuid": UUID(int=7),
        "moment": moment,
        "day": date(2024, 2, 29),
        "clock": time(1, 2, 3, 400000),
        "lasts": timedelta(hours=30, microseconds=5),
        "price": Decimal("12.3400"),
        "raw": b"\x00'\\\xff%s",
        "facts": {"a": [1, None], "100%": "ü'"},
        "tags": ["x", "y"],
        "colour": Colour.RED,
        "active": True,
    }
    async with way.session() as session:
        columns = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        result = await told(session.execute(f"INSERT INTO everything ({columns}) VALUES ({marks})", values))
        assert (result.last_inserted_id, result.rows_affected) == (1, 1)
        row = await told(session.select_one("SELECT * FROM everything", schema_type=Everything))
    naive = moment.astimezone(UTC).replace(tzinfo=None)  # the server keeps no time zone: it is UTC
    assert row == Everything(id=1, **{**values, "moment": naive})
    way.server.execute("DROP TABLE everything")


@in_both
async def test_a_value_of_a_type_that_the_drivers_do_not_know_is_refused_and_nothing_is_stored(way: Way) -> None:
    with pytest.raises(UsageError, match=r"PosixPath cannot be a parameter"):
        async with way.session() as session:
            await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))
            for value in (object(), {1, 2}, 3j, (n for n in "a"), float("nan"), -float("inf"), Decimal("NaN")):
                with pytest.raises(UsageError):
                    await told(session.execute("INSERT INTO numbers VALUES (2, ?)", value))
                with pytest.raises(UsageError):
                    await told(session.execute_many("INSERT INTO numbers VALUES (?, ?)", [(2, "a"), (3, value)]))
            await told(session.execute("INSERT INTO numbers VALUES (2, ?)", Path("/x")))
    assert numbers(way.server) == []


@in_both
async def test_a_tuple_is_a_document_and_bytes_come_in_every_form(way: Way) -> None:
    async with way.session() as session:
        row = await told(
            session.select_one("SELECT ? AS a, HEX(?) AS b, HEX(?) AS c", (1, 2), bytearray(b"a"), memoryview(b"b"))
        )
    assert row == {"a": "[1,2]", "b": "61", "c": "62"}


def test_a_type_that_the_driver_was_taught_is_left_to_it(way: Way) -> None:
    config = way.config(pool={"conv": {**conversions, Path: lambda path, _: f"'{path}'"}})

    async def body() -> None:
        async with way.session(config) as session:
            assert await told(session.select_value("SELECT ?", Path("/x"))) == "/x"
            with pytest.raises(UsageError):
                await told(session.select_value("SELECT ?", 3j))

    way.run(body())


LEFT_OVER = "SELECT @a AS a, @@session.sort_buffer_size AS size, GET_LOCK('transept', 3) AS free"


@pytest.mark.parametrize(
    "statement",
    [
        "SET @a = 1",
        "SELECT 1 INTO /* a variable */ @a",
        "SELECT @a := 1",
        "SET SESSION sort_buffer_size = 1048576",
        "SELECT GET_LOCK('transept', 0)",
        "CREATE TEMPORARY TABLE numbers (other INTEGER)",
        "LOCK TABLES numbers READ",
    ],
)
@pytest.mark.parametrize("how", ["execute", "script", "stream", "driver"])
def test_what_one_request_did_to_its_session_does_not_reach_the_next(way: Way, how: str, statement: str) -> None:
    config = way.config(pool={"max_size": 1})

    async def body() -> None:
        async with way.session(config) as session:
            before = await told(session.select_one(LEFT_OVER))
        if how == "driver":
            async with given(way.registry.provide_connection(config)) as connection:
                await told(connection.query(statement))
        else:
            async with way.session(config) as session:
                if how == "stream":
                    assert len([row async for row in read(session.stream(statement))]) <= 1
                else:
                    await told(session.execute(statement) if how == "execute" else session.execute_script(statement))
        async with way.session(config) as session:
            assert await told(session.select_one(LEFT_OVER)) == before
            assert await told(session.select("SELECT id FROM numbers")) == []
            await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))

    way.run(body())
    assert numbers(way.server) == [1]


def test_a_connection_whose_session_was_not_touched_is_used_again(way: Way) -> None:
    config = way.config(pool={"max_size": 1})
    seen = set()

    async def body() -> None:
        for n in range(3):
            async with way.session(config) as session:
                await told(session.execute("INSERT INTO numbers VALUES (?, 'me@here')", n))
                await told(session.execute("REPLACE INTO numbers VALUES (?, 'me@here')", n))
                async with block(session.transaction()):
                    await told(session.execute("UPDATE numbers SET v = '@a'"))
                [row async for row in read(session.stream("SELECT * FROM numbers"))]
                seen.add(await told(session.select_value("SELECT CONNECTION_ID()")))

    way.run(body())
    assert len(seen) == 1


@in_both
async def test_a_document_without_a_schema_is_text(way: Way) -> None:
    async with way.session() as session:
        assert await told(session.select_value("SELECT CAST('{\"a\": 1}' AS CHAR)")) == '{"a": 1}'


@in_both
async def test_parameters_are_written_in_any_style(way: Way) -> None:
    async with way.session() as session:
        for sql, arguments in (
            ("SELECT %s AS a, %s AS b", (1, "x")),
            ("SELECT ? AS a, ? AS b", (1, "x")),
            ("SELECT :a AS a, :b AS b", ({"a": 1, "b": "x"},)),
            ("SELECT %(a)s AS a, %(b)s AS b", ({"a": 1, "b": "x"},)),
            ("SELECT :1 AS a, :2 AS b", (1, "x")),
        ):
            assert await told(session.select_one(sql, *arguments)) == {"a": 1, "b": "x"}


@in_both
async def test_a_percent_sign_stays_what_it_is_with_values_and_without(way: Way) -> None:
    async with way.session() as session:
        assert await told(session.select_value("SELECT '50% %s %%'")) == "50% %s %%"
        assert await told(session.select_one("SELECT '50%' AS a, ? AS b", "100%")) == {"a": "50%", "b": "100%"}
        await told(session.execute_many("INSERT INTO numbers VALUES (?, '50%')", [(1,), (2,)]))
        await told(session.execute_script("INSERT INTO numbers VALUES (3, '50%'); UPDATE numbers SET v = '10%'"))
        assert await told(session.select_value("SELECT GROUP_CONCAT(v) FROM numbers")) == "10%,10%,10%"
        assert await told(session.select("SELECT id FROM numbers WHERE v LIKE '10%' AND id IN (?)", [[1, 3]])) == [
            {"id": 1},
            {"id": 3},
        ]


@in_both
async def test_an_update_affects_the_rows_that_it_finds(way: Way) -> None:
    async with way.session() as session:
        result = await told(session.execute_many("INSERT INTO numbers VALUES (%s, 'a')", [(n,) for n in range(5)]))
        assert result.rows_affected == 5
        for _ in range(2):
            assert (await told(session.execute("UPDATE numbers SET v = 'b' WHERE id < 3"))).rows_affected == 3
        result = await told(session.execute_many("UPDATE numbers SET v = %s WHERE id = %s", [("c", 1), ("c", 2)]))
        assert result.rows_affected == 2


@in_both
async def test_a_call_gives_its_first_result_and_the_next_statement_its_own(way: Way) -> None:
    way.server.execute(
        "DROP PROCEDURE IF EXISTS twice", "CREATE PROCEDURE twice() BEGIN SELECT 1 AS a; SELECT 2 AS b; END"
    )
    async with way.session() as session:
        assert await told(session.select("CALL twice()")) == [{"a": 1}]
        assert await told(session.select_value("SELECT 3")) == 3
    way.server.execute("DROP PROCEDURE twice")


@in_both
async def test_a_block_is_kept_or_undone_alone(way: Way) -> None:
    async with way.session() as session:
        async with block(session.transaction()):
            await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))
        with pytest.raises(RuntimeError):
            async with block(session.transaction()):
                await told(session.execute("INSERT INTO numbers VALUES (2, 'a')"))
                async with block(session.transaction()):
                    await told(session.execute("INSERT INTO numbers VALUES (3, 'a')"))
                raise RuntimeError
        await told(session.execute("INSERT INTO numbers VALUES (4, 'a')"))
        with pytest.raises(UniqueViolationError):
            async with block(session.transaction()):
                await told(session.execute("INSERT INTO numbers VALUES (4, 'b')"))
    assert numbers(way.server) == [1, 4]


@in_both
async def test_the_connection_has_cursors_on_the_same_transaction(way: Way) -> None:
    async with given(way.registry.provide_connection(way.database)) as connection:
        cursor = await told(connection.cursor())
        await told(cursor.execute("SELECT 1"))
        assert await told(cursor.fetchone()) == (1,)
        await told(cursor.execute("INSERT INTO numbers VALUES (%s, %s)", (1, "a")))
        assert cursor.rowcount == 1
        assert await told(connection.ping()) is None
        await told(connection.commit())
        await told(cursor.execute("INSERT INTO numbers VALUES (%s, %s)", (2, "a")))
        await told(connection.rollback())
    assert numbers(way.server) == [1]


@in_both
async def test_a_stream_of_many_rows_takes_little_memory(way: Way) -> None:
    async with way.session() as session:
        stream = session.stream("SELECT seq, REPEAT('x', 200) AS t FROM seq_1_to_100000")
        total, seen = 0, 0
        tracemalloc.start()
        async for row in read(stream):
            total, seen = total + row["seq"], seen + 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (seen, total) == (100_000, 5_000_050_000)
        assert peak < 3_000_000
        assert await told(session.select_value("SELECT 1")) == 1


@in_both
async def test_a_statement_amid_a_stream_is_an_error_that_names_the_stream(way: Way) -> None:
    async with way.session() as session:
        stream = session.stream("SELECT seq FROM seq_1_to_5000", chunk_size=10)
        rows = read(stream)
        assert (await anext(rows))["seq"] == 1
        for again in (
            lambda: session.select("SELECT 1"),
            lambda: session.execute_many("INSERT INTO numbers VALUES (?, 'a')", [(1,)]),
            lambda: session.execute_script("SELECT 1"),
            lambda: anext(read(session.stream("SELECT 2"))),
        ):
            with pytest.raises(UsageError, match="'SELECT seq FROM seq_1_to_5000'"):
                await told(again())
        assert [row["seq"] async for row in rows] == list(range(2, 5001))
        assert await told(session.select_value("SELECT 7")) == 7


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_a_stream_that_is_left_half_read_leaves_a_usable_pool(way: Way, ending: str) -> None:
    async def body() -> None:
        config = way.config(pool={"max_size": 1})
        async with way.session(config) as session:
            await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))
            stream = session.stream("SELECT seq FROM seq_1_to_100000", chunk_size=10)
            rows = read(stream)
            await anext(rows)
            await closed(stream)
            if ending == "commit":
                assert await told(session.select_value("SELECT 8")) == 8
            await told(session.commit() if ending == "commit" else session.rollback())
            assert await told(session.select_value("SELECT 9")) == 9
            rows = read(session.stream("SELECT seq FROM seq_1_to_100000", chunk_size=10))
            await anext(rows)  # and the unit of work ends with it open
        async with way.session(config) as session:
            assert await told(session.select_value("SELECT 10")) == 10
        del rows, stream
        gc.collect()

    way.run(body())
    assert numbers(way.server) == ([1] if ending == "commit" else [])


@in_both
async def test_a_stream_that_fails_at_its_start_leaves_the_session_usable(way: Way) -> None:
    async with way.session() as session:
        with pytest.raises(ProgrammingError):
            await anext(read(session.stream("SELECT * FROM nowhere")))
        assert [row async for row in read(session.stream("SELECT id FROM numbers"))] == []
        assert [row async for row in read(session.stream("UPDATE numbers SET v = 1"))] == []
        assert await told(session.select_value("SELECT 1")) == 1


@in_both
async def test_what_follows_a_deadlock_is_not_kept(way: Way) -> None:
    way.server.execute("INSERT INTO numbers VALUES (1, 'a'), (2, 'a')")
    rival = way.server.connect()
    cursor = rival.cursor()
    cursor.execute("BEGIN")
    cursor.execute(f"INSERT INTO numbers VALUES {', '.join(f'({n}, 0)' for n in range(10, 60))}")
    cursor.execute("UPDATE numbers SET v = 'b' WHERE id = 2")
    waits = threading.Thread(target=lambda: cursor.execute("UPDATE numbers SET v = 'b' WHERE id = 1"))
    with pytest.raises(CommitFailed, match="ended the transaction"):
        async with way.session() as session:
            await told(session.execute("UPDATE numbers SET v = 'c' WHERE id = 1"))
            waits.start()
            await told(session.select_value("SELECT 1 FROM (SELECT SLEEP(0.2)) AS s"))
            with pytest.raises(DeadlockError):
                await told(session.execute("UPDATE numbers SET v = 'c' WHERE id = 2"))
            await told(session.execute("INSERT INTO numbers VALUES (3, 'kept?')"))
    waits.join()
    cursor.execute("ROLLBACK")
    rival.close()
    assert numbers(way.server) == [1, 2]


@in_both
async def test_a_lock_timeout_that_is_survived_undoes_its_statement_alone(way: Way) -> None:
    way.server.execute("INSERT INTO numbers VALUES (1, 'a')")
    rival = way.server.connect()
    rival.cursor().execute("BEGIN")
    rival.cursor().execute("UPDATE numbers SET v = 'b' WHERE id = 1")
    async with way.session() as session:
        await told(session.execute("INSERT INTO numbers VALUES (2, 'a')"))
        await told(session.execute("SET innodb_lock_wait_timeout = 1"))
        with pytest.raises(LockTimeoutError):
            await told(session.execute("UPDATE numbers SET v = 'c' WHERE id = 1"))
    rival.close()
    assert numbers(way.server) == [1, 2]


@in_both
async def test_a_lost_savepoint_means_that_the_transaction_is_lost(way: Way) -> None:
    with pytest.raises(CommitFailed):
        async with way.session() as session:
            await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))
            with pytest.raises(ProgrammingError):
                async with block(session.transaction()):
                    await told(session.execute("INSERT INTO numbers VALUES (2, 'a')"))
                    await told(session.execute("CREATE OR REPLACE TABLE of_ddl (v INTEGER)"))  # commits by itself
            await told(session.execute("INSERT INTO numbers VALUES (3, 'a')"))
    assert numbers(way.server) == [1, 2]


@in_both
async def test_a_pooled_connection_that_the_server_killed_is_replaced_silently(way: Way) -> None:
    config = way.config(pool={"max_size": 2, "min_size": 2})
    await config.start()
    killed = way.server.execute(
        "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
    )
    for (number,) in killed:
        way.server.execute(f"KILL {number}")
    async with way.session(config) as session:
        await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))
    assert numbers(way.server) == [1]


@in_both
async def test_a_connection_that_is_killed_in_its_transaction_is_an_error_and_keeps_nothing(way: Way) -> None:
    with pytest.raises(CommitFailed):
        async with way.session() as session:
            await told(session.execute("INSERT INTO numbers VALUES (1, 'a')"))
            number = await told(session.select_value("SELECT connection_id()"))
            way.server.execute(f"KILL {number}")
            with pytest.raises(DatabaseUnavailable):
                await told(session.execute("INSERT INTO numbers VALUES (2, 'a')"))
    async with way.session() as session:
        assert await told(session.select_value("SELECT count(*) FROM numbers")) == 0


@in_both
async def test_a_database_that_is_down_is_unavailable(way: Way) -> None:
    config = way.config(dsn=f"mysql://root@127.0.0.1:{free()}/app", pool={"min_size": 1})
    await config.start()
    with pytest.raises(DatabaseUnavailable):
        async with way.session(config) as session:
            await told(session.select_value("SELECT 1"))


@in_both
async def test_an_eager_database_that_is_down_fails_at_the_start(way: Way) -> None:
    config = way.config(dsn=f"mysql://root@127.0.0.1:{free()}/app", eager=True)
    with pytest.raises(Exception, match="2003"):
        await config.start()


def test_an_exhausted_pool_names_who_has_its_connections(way: Way) -> None:
    config = way.config(pool={"maxsize": 1}, pool_timeout=0.1)

    async def body() -> None:
        async with way.session(config) as session:
            await told(session.select_value("SELECT 1"))
            with pytest.raises(PoolTimeout, match=r"for 0\.\d s"):
                async with way.session(config) as second:
                    await told(second.select_value("SELECT 1"))

    way.run(body())


@pytest.mark.parametrize("kind", [AsyncmyConfig, PyMysqlConfig])
def test_a_dsn_gives_the_drivers_keywords(kind: Any) -> None:
    for scheme in ("mysql", "mariadb", "mysql+asyncmy", "mysql+pymysql"):
        config = kind(
            pool_config={
                "dsn": f"{scheme}://me:p%40ss@db.example:3307/app?charset=utf8mb4&connect_timeout=3&local_infile=true",
                "user": "you",
            }
        )
        wanted = {
            "user": "you",
            "password": "p@ss",
            "host": "db.example",
            "port": 3307,
            "database": "app",
            "charset": "utf8mb4",
            "connect_timeout": 3,
            "local_infile": True,
            "autocommit": False,
            "client_flag": 2,
        }
        assert {name: value for name, value in config._options.items() if name != "conv"} == wanted


@pytest.mark.parametrize("kind", [AsyncmyConfig, PyMysqlConfig])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dsn": "postgresql://me:secret@localhost/app"}, "dsn='postgresql://...@localhost/app'"),
        ({"dsn": "mysql://localhost:port/app"}, "dsn='mysql://localhost:port/app'"),
        ({"dsn": 3}, "dsn=3"),
        ({"dsn": "mysql://localhost/app?charst=utf8"}, "charset"),
        ({"pasword": "x"}, "password"),
        ({"autocommit": True}, "autocommit"),
        ({"cursorclass": object}, "cursorclass"),
        ({"maxsize": 3, "max_size": 4}, "two spellings"),
        ({"max_size": 0}, "pool_config: max_size=0: a pool has at least 1 connection"),
        ({"maxsize": "3"}, "pool_config: maxsize='3': a pool has at least 1 connection"),
        ({"min_size": "2"}, "pool_config: min_size='2': give a whole number"),
        ({"minsize": 3, "maxsize": 2}, "minsize=3: give a whole number, at least 0 and at most maxsize=2"),
        ({"max_idle": "x"}, "pool_config: max_idle='x': seconds are needed"),
        ({"pool_recycle": "x"}, "pool_config: pool_recycle='x': seconds are needed"),
        ({"client_flag": "x"}, "pool_config: client_flag='x': an int is needed"),
        ({"port": "3306"}, "pool_config: port='3306': an int is needed"),
        ({"charset": "nope"}, "pool_config: charset='nope': a character set that the driver knows"),
        ({"dsn": "mysql://localhost/app?charset=nope"}, "charset='nope'"),
        ({"charset": 3}, "charset=3"),
        ({"conv": 3}, "conv=3"),
        ({3: 4}, "pool_config key=3: a str is needed"),
    ],
)
def test_a_wrong_setting_is_refused(kind: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=f"^{kind.__name__}: .*{re.escape(said)}") as refused:
        kind(pool_config=settings)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("kind", [AsyncmyConfig, PyMysqlConfig])
def test_the_pool_is_spelled_as_the_drivers_own(kind: Any) -> None:
    config = kind(pool_config={"maxsize": 7, "minsize": 2, "pool_recycle": 60})
    assert config._sizes == {"max_size": 7, "max_idle": 60, "min_size": 2}
    assert kind(pool_config={"pool_recycle": -1})._pool_settings().max_idle is None


def test_a_task_cancelled_amid_a_statement_leaves_nothing_and_no_connection_out_of_step(mariadb: Server) -> None:
    mariadb.execute("DROP TABLE IF EXISTS numbers", "CREATE TABLE numbers (id INTEGER PRIMARY KEY)")
    config = AsyncmyConfig(pool_config={"dsn": mariadb.dsn, "max_size": 1})
    registry = Registry()

    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), registry.provide_session(config) as session:
                await session.execute("INSERT INTO numbers VALUES (1)")
                await session.select_value("SELECT SLEEP(3)")
        async with registry.provide_session(config) as session:
            assert await session.select_value("SELECT 5") == 5
        with pytest.raises(CommitFailed):
            async with registry.provide_session(config) as session:
                await session.execute("INSERT INTO numbers VALUES (2)")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await session.select_value("SELECT SLEEP(3)")
                with pytest.raises(DatabaseUnavailable):
                    await session.execute("INSERT INTO numbers VALUES (3)")
        with pytest.raises(TimeoutError):
            async with registry.provide_session(config) as session:
                async with asyncio.timeout(0.1):
                    async for _ in session.stream("SELECT seq, SLEEP(0.05) FROM seq_1_to_100", chunk_size=1):
                        pass
        async with registry.provide_session(config) as session:
            assert await session.select_value("SELECT 6") == 6

    asyncio.run(body())
    assert mariadb.execute("SELECT * FROM numbers") == []


@pytest.mark.parametrize("driver", ["asyncmy", "pymysql"])
def test_a_program_that_never_closes_its_pool_ends(driver: str, mariadb: Server) -> None:
    program = f"""
import asyncio, sys
from transept import Registry
from transept.adapters.{driver} import *
from transept.adapters import {driver} as adapter
config = getattr(adapter, adapter.__all__[0])(pool_config={{"dsn": {mariadb.dsn!r}}})
registry = Registry()
async def main():
    async with registry.provide_session(config) as session:
        print(await session.select_value("SELECT 5"))
if config.blocking:
    with registry.provide_session(config) as session:
        print(session.select_value("SELECT 5"))
else:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr
