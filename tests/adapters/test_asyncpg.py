"""SQL-first sessions over asyncpg and its pool."""

from __future__ import annotations

import asyncio
import enum
import logging
import re
import subprocess
import sys
import time as timer
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from servers.server import Server

from transept import unit_of_work
from transept.adapters.asyncpg import AsyncpgConfig
from transept.errors import DatabaseUnavailable, DataError, ImproperConfigurationError, SQLError
from transept.sql.values import Json

pytestmark = pytest.mark.anyio

KINDS: dict[str, tuple[str, Any]] = {
    "id": ("uuid", UUID(int=7)),
    "at": ("timestamptz", datetime(2024, 2, 29, 12, 30, tzinfo=UTC)),
    "day": ("date", date(2024, 2, 29)),
    "hour": ("time", time(12, 30, 15)),
    "lasts": ("interval", timedelta(days=2, seconds=5)),
    "price": ("numeric", Decimal("1.2300")),
    "raw": ("bytea", b"\x00\xff"),
    "doc": ("jsonb", {"a": [1, None, "x"]}),
    "plain_doc": ("json", {"a": {"b": 1.5}}),
    "numbers": ("int[]", [1, 2, 3]),
    "big": ("bigint", 2**40),
    "yes": ("boolean", True),
    "words": ("text", "it's 100% $1 :a ?"),
}


@dataclass
class Held:
    """What a row of all kinds is read into."""

    id: UUID | None
    at: datetime | None
    day: date | None
    hour: time | None
    lasts: timedelta | None
    price: Decimal | None
    raw: bytes | None
    doc: dict[str, list[int | str | None]] | None
    plain_doc: dict[str, dict[str, float]] | None
    numbers: list[int] | None
    big: int | None
    yes: bool | None
    words: str | None


class Shade(enum.Enum):
    DARK = "dark"


@dataclass
class Point:
    x: int
    y: int


@pytest.fixture
def held(postgres: Server) -> Iterator[str]:
    """The name of a table that is empty."""
    postgres.execute("DROP TABLE IF EXISTS apg", "CREATE TABLE apg (v integer)")
    yield "apg"
    postgres.execute("DROP TABLE apg")


@asynccontextmanager
async def opened(server: Server, *, pool_config: Any = None, **settings: Any) -> AsyncIterator[AsyncpgConfig]:
    """One connection, so that each user of it gets the one before's."""
    database = AsyncpgConfig(pool_config={"dsn": server.dsn, "max_size": 1, **(pool_config or {})}, **settings)
    try:
        yield database
    finally:
        await database.stop()


@asynccontextmanager
async def session_of(database: AsyncpgConfig) -> AsyncIterator[Any]:
    async with unit_of_work() as unit:
        yield unit.session(database)


async def test_values_come_back_as_they_went(postgres: Server) -> None:
    async with opened(postgres) as database, session_of(database) as session:
        for kind, value in KINDS.values():
            assert await session.select_value(f"SELECT $1::{kind}", [value]) == value
            assert await session.select_value(f"SELECT $1::{kind}", [None]) is None
        assert await session.select_value("SELECT :v::jsonb", v=Json([1, {"a": 2}])) == [1, {"a": 2}]
        assert await session.select_value("SELECT :v::jsonb", v=Point(1, 2)) == {"x": 1, "y": 2}
        assert await session.select_value("SELECT :v::text", v=Shade.DARK) == "dark"


@pytest.mark.parametrize("null", [False, True])
async def test_values_of_all_kinds_come_back_in_a_schema(postgres: Server, null: bool) -> None:
    columns = ", ".join(f":{name}::{kind} AS {name}" for name, (kind, _) in KINDS.items())
    values = {name: None if null else value for name, (_, value) in KINDS.items()}
    async with opened(postgres) as database, session_of(database) as session:
        row = await session.select_one(f"SELECT {columns}", values, schema_type=Held)
    assert row == Held(**values)


# A statement that asyncpg prepared, but did not send.


@pytest.mark.parametrize("saving", [{}, {"skip_reset": False}, {"bare_reads": False}])
async def test_a_value_of_a_wrong_type_harms_nobody_who_writes_after_it(
    postgres: Server, held: str, saving: dict[str, bool]
) -> None:
    async with opened(postgres, **saving) as database:
        async with session_of(database) as session:
            await session.select("SELECT 1")
        for turn in range(3):
            with pytest.raises(DataError):
                async with session_of(database) as session:
                    await session.select("SELECT v FROM apg WHERE v = $1::int", f"x{turn}")
            async with session_of(database) as session:
                await session.execute("INSERT INTO apg VALUES ($1)", turn)
    assert postgres.execute("SELECT v FROM apg ORDER BY v") == [(0,), (1,), (2,)]


@pytest.mark.parametrize("how", ["execute", "execute_many", "script", "stream", "begin", "raw", "past us"])
async def test_whatever_comes_after_a_value_of_a_wrong_type_works(postgres: Server, held: str, how: str) -> None:
    async with opened(postgres) as database:
        async with unit_of_work() as unit:
            session = unit.session(database)
            for _ in range(2):
                with pytest.raises(DataError):
                    await session.select("SELECT 1 WHERE 1 = $1::int", "x")
            match how:
                case "execute_many":
                    await session.execute_many("INSERT INTO apg VALUES ($1)", [(7,)])
                case "script":
                    await session.execute_script("INSERT INTO apg VALUES (7)")
                case "stream":
                    assert [row["v"] async for row in session.stream("SELECT 7 AS v")] == [7]
                    await session.execute("INSERT INTO apg VALUES (7)")
                case "raw":
                    await unit.connection(database).execute("INSERT INTO apg VALUES (7)")
                case "past us":
                    async with (await database.provide_pool()).acquire() as connection:
                        await connection.execute("INSERT INTO apg VALUES (7)")
                case _:
                    if how == "begin":
                        await session.begin()
                    await session.execute("INSERT INTO apg VALUES (7)")
        async with session_of(database) as session:
            assert await session.select_value("SELECT sum(v) FROM apg") == 7
    assert postgres.execute("SELECT v FROM apg") == [(7,)]


async def test_a_value_of_a_wrong_type_inside_a_transaction_loses_nothing(postgres: Server, held: str) -> None:
    async with opened(postgres) as database:
        async with session_of(database) as session:
            await session.execute("INSERT INTO apg VALUES (1)")
            for statement in ("SELECT 1 WHERE 1 = $1::int", "INSERT INTO apg VALUES ($1::int + 0)"):
                with pytest.raises(DataError):
                    await session.execute(statement, "x")
            with pytest.raises(DataError):
                await session.execute_many("INSERT INTO apg VALUES ($1::int - 0)", [("x",)])
            await session.execute("INSERT INTO apg VALUES (2)")
        async with session_of(database) as session:
            assert await session.select_value("SELECT count(*) FROM apg") == 2
    assert postgres.execute("SELECT v FROM apg ORDER BY v") == [(1,), (2,)]


async def test_a_lone_read_that_takes_too_long_harms_nobody_after_it(postgres: Server, held: str) -> None:
    async with opened(postgres, pool_config={"command_timeout": 0.3}) as database:
        with pytest.raises(SQLError):
            async with session_of(database) as session:
                await session.select("SELECT pg_sleep(5)")
        async with session_of(database) as session:
            await session.execute("INSERT INTO apg VALUES (1)")
    assert postgres.execute("SELECT v FROM apg") == [(1,)]


# A connection that the server ends.


def end_backend(server: Server, number: int) -> None:
    server.execute(f"SELECT pg_terminate_backend({number})")


@pytest.mark.parametrize("noticed", [True, False])
async def test_a_connection_lost_in_a_transaction_is_told_at_the_next_statement(
    postgres: Server, held: str, caplog: pytest.LogCaptureFixture, noticed: bool
) -> None:
    async with opened(postgres) as database:
        with pytest.raises(DatabaseUnavailable):
            async with session_of(database) as session:
                await session.execute("INSERT INTO apg VALUES (1)")
                end_backend(postgres, await session.select_value("SELECT pg_backend_pid()"))
                await asyncio.sleep(0.2 if noticed else 0)
                await session.execute("SELECT 1")
        async with session_of(database) as session:
            assert await session.select_value("SELECT count(*) FROM apg") == 0
    assert caplog.records == []


async def test_a_connection_lost_before_commit_is_sent_is_not_in_doubt(
    postgres: Server, held: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(postgres) as database:
        with pytest.raises(DatabaseUnavailable, match="the connection was lost"):
            async with session_of(database) as session:
                await session.execute("INSERT INTO apg VALUES (1)")
                end_backend(postgres, await session.select_value("SELECT pg_backend_pid()"))
                await asyncio.sleep(0.2)
        async with session_of(database) as session:
            assert await session.select_value("SELECT count(*) FROM apg") == 0
    assert caplog.records == []


@pytest.mark.parametrize("noticed", [True, False])
async def test_rolling_back_a_connection_that_was_lost_is_nothing_to_warn_of(
    postgres: Server, held: str, caplog: pytest.LogCaptureFixture, noticed: bool
) -> None:
    async with opened(postgres) as database, session_of(database) as session:
        await session.execute("INSERT INTO apg VALUES (1)")
        end_backend(postgres, await session.select_value("SELECT pg_backend_pid()"))
        await asyncio.sleep(0.2 if noticed else 0)
        await session.rollback()
        assert await session.select_value("SELECT count(*) FROM apg") == 0
    assert caplog.records == []


async def test_the_place_of_a_lost_connection_is_given_back_once(postgres: Server) -> None:
    async with opened(postgres) as database:

        async def holding(taken: asyncio.Event, done: asyncio.Event) -> None:
            async with session_of(database) as session:
                await session.begin()
                taken.set()
                await done.wait()
                assert await session.select_value("SELECT 1") == 1

        taken, done = asyncio.Event(), asyncio.Event()
        async with session_of(database) as session:
            await session.begin()
            end_backend(postgres, await session.select_value("SELECT pg_backend_pid()"))
            await asyncio.sleep(0.2)
            other = asyncio.create_task(holding(taken, done), context=Context())
            await taken.wait()
            await session.rollback()
        done.set()
        await other


# The start, the end and the settings.


@pytest.mark.parametrize("ends", ["", "raise SystemExit(3)"])
def test_a_program_that_ends_with_a_connection_in_use_ends_quietly_and_at_once(postgres: Server, ends: str) -> None:
    program = f"""
import asyncio
from transept import unit_of_work
from transept.adapters.asyncpg import AsyncpgConfig
database = AsyncpgConfig(pool_config={{"dsn": {postgres.dsn!r}, "min_size": 2}})
block = unit_of_work()
async def main():
    await database.start()
    unit = await block.__aenter__()
    await unit.session(database).execute("INSERT INTO pg_description SELECT * FROM pg_description WHERE false")
    {ends}
asyncio.run(main())
"""
    began = timer.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3 if ends else 0, "", "")
    assert timer.monotonic() - began < 5


async def test_a_pool_that_is_closed_while_it_is_in_use_names_who_uses_it(postgres: Server) -> None:
    async with opened(postgres, pool_timeout=0.3) as database, session_of(database) as session:
        await session.begin()
        with pytest.raises(TimeoutError, match=r"still in use.*the block in session_of"):
            await database.close_pool()
        with pytest.raises(DatabaseUnavailable):
            await session.execute("SELECT 1")
        await session.rollback()


async def test_start_up_waits_no_longer_than_a_statement_would(
    postgres: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with opened(postgres, pool_config={"min_size": 1}, pool_timeout=0.3) as database:
        pool = await database.provide_pool()
        async with pool.acquire(), asyncio.timeout(5):
            await database.start()
    assert [record.message.split(":")[0] for record in caplog.records] == ["database 'default' cannot be reached yet"]


async def test_a_url_may_have_a_driver_in_its_scheme(postgres: Server) -> None:
    url = postgres.dsn.replace("postgresql://", "postgresql+asyncpg://")
    async with opened(postgres, pool_config={"dsn": url}) as database, session_of(database) as session:
        assert await session.select_value("SELECT 1") == 1


@pytest.mark.parametrize(
    ("pool_config", "said"),
    [
        ({"min_size": 5, "max_size": 2}, "pool_config['min_size']=5: at most max_size=2"),
        ({"min_size": "2"}, "pool_config['min_size']='2': a whole number from 0"),
        ({"min_size": -1}, "pool_config['min_size']=-1: a whole number from 0"),
        ({"max_size": 0}, "pool_config['max_size']=0: a whole number from 1"),
        ({"max_size": "3"}, "pool_config['max_size']='3': a whole number from 1"),
        ({"max_size": True}, "pool_config['max_size']=True: a whole number from 1"),
        ({"host": "h", "port": "abc"}, "pool_config['port']='abc': a whole number"),
        ({"dsn": 5}, "pool_config['dsn']=5: a str"),
        ({"dsn": "nonsense"}, "a URL is needed"),
        ({"dsn": "oracle://u:secret@h/d"}, "'oracle://...': a URL is needed"),
        ({"dbname": "x"}, "Did you mean 'database'?"),
        ({"db": "x"}, "Did you mean 'database'?"),
    ],
)
def test_wrong_settings_are_refused_at_construction(pool_config: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=re.escape(said)) as caught:
        AsyncpgConfig(pool_config=pool_config)
    assert "secret" not in str(caught.value)


def test_without_asyncpg_it_is_said_what_to_install() -> None:
    program = "import sys; sys.modules['asyncpg'] = None; import transept.adapters.asyncpg"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    last = done.stderr.strip().split("\n")[-1]
    assert last == "ImportError: transept.adapters.asyncpg needs asyncpg: pip install 'transept[asyncpg]'"
