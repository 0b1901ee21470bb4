"""aiosqlite: what a thread for each connection asks for."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time as clock
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from transept import Registry
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.errors import (
    CommitFailed,
    DatabaseUnavailable,
    ImproperConfigurationError,
    LockTimeoutError,
    PoolTimeout,
    UniqueViolationError,
    UsageError,
)

pytestmark = pytest.mark.anyio

SLOW = "SELECT count(*) FROM a a1, a a2, a a3, a a4"


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "app.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE numbers (id INTEGER PRIMARY KEY, v TEXT);"
            "CREATE TABLE a (n INTEGER);"
            "INSERT INTO a WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 320) SELECT n FROM c"
        )
    return path


def numbers(path: str) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT id FROM numbers ORDER BY id")]


def opened(path: str, **settings: Any) -> tuple[Registry, AiosqliteConfig]:
    pool = settings.pop("pool", {})
    registry = Registry()
    config = AiosqliteConfig(pool_config={"database": path, **pool}, **settings)
    registry.add_config(config)
    return registry, config


async def cut(work: Callable[[], Awaitable[Any]]) -> None:
    """Begin it, and cancel it when it has been in the thread for a while."""
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Colour(Enum):
    RED = "red"


@dataclass
class Everything:
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


async def test_values_of_every_type_come_back() -> None:
    registry, config = opened(":memory:")
    row = Everything(
        uuid=UUID(int=7),
        moment=datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
        day=date(2024, 2, 29),
        clock=time(1, 2, 3, 400000),
        lasts=timedelta(hours=30, microseconds=5),
        price=Decimal("12.3400"),
        raw=b"\x00'\xff",
        facts={"a": [1, None]},
        tags=["x"],
        colour=Colour.RED,
        active=True,
    )
    columns = list(vars(row))
    async with registry.provide_session(config) as session:
        await session.execute(f"CREATE TABLE everything ({', '.join(f'{name} BLOB' for name in columns)})")
        marks = ", ".join(f":{name}" for name in columns)
        await session.execute(f"INSERT INTO everything VALUES ({marks})", vars(row))
        assert await session.select_one("SELECT * FROM everything", schema_type=Everything) == row
    await registry.close_all_pools()


async def test_parameters_are_written_in_any_style_and_a_percent_sign_stays(path: str) -> None:
    registry, config = opened(path)
    async with registry.provide_session(config) as session:
        for sql, arguments in (
            ("SELECT ? AS a, '50%' AS b", (1,)),
            ("SELECT %s AS a, '50%' AS b", (1,)),
            ("SELECT :a AS a, '50%' AS b", ({"a": 1},)),
            ("SELECT $1 AS a, '50%' AS b", (1,)),
        ):
            assert await session.select_one(sql, *arguments) == {"a": 1, "b": "50%"}
    await registry.close_all_pools()


async def test_many_a_script_and_blocks_are_one_transaction(path: str) -> None:
    registry, config = opened(path)
    async with registry.provide_session(config) as session:
        assert (await session.execute_many("INSERT INTO numbers VALUES (?, 'a')", [(1,), (2,)])).rows_affected == 2
        await session.execute_script("INSERT INTO numbers VALUES (3, 'a;b'); UPDATE numbers SET v = 'c' WHERE id = 1")
        with pytest.raises(UniqueViolationError):
            async with session.transaction():
                await session.execute("INSERT INTO numbers VALUES (4, 'a')")
                await session.execute("INSERT INTO numbers VALUES (4, 'a')")
        assert numbers(path) == []
        result = await session.execute("INSERT INTO numbers (v) VALUES ('x')")
        assert (result.last_inserted_id, result.rows_affected) == (4, 1)
        assert await session.select("INSERT INTO numbers VALUES (9, 'a') RETURNING id") == [{"id": 9}]
    assert numbers(path) == [1, 2, 3, 4, 9]
    await registry.close_all_pools()


async def test_the_connection_has_cursors_on_the_same_transaction(path: str) -> None:
    registry, config = opened(path)
    async with registry.provide_connection(config) as connection:
        cursor = await connection.cursor()
        await cursor.execute("SELECT 1")
        assert await cursor.fetchone() == (1,)
        await connection.execute_insert("INSERT INTO numbers VALUES (1, 'a')")
        assert connection.in_transaction
        assert connection.total_changes == 1
        await connection.rollback()
    assert numbers(path) == []
    await registry.close_all_pools()


async def test_a_stream_of_many_rows_takes_little_memory_and_others_statements_go_between(path: str) -> None:
    registry, config = opened(path)
    async with registry.provide_session(config) as session:
        tracemalloc.start()
        total, seen = 0, 0
        async for row in session.stream("SELECT a1.n AS n, a2.n AS m FROM a a1, a a2 LIMIT 100000"):
            total, seen = total + row["n"], seen + 1
            if seen % 30_000 == 0:
                await session.execute("INSERT INTO numbers VALUES (?, 'a')", seen)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert seen == 100_000
    assert peak < 3_000_000
    assert numbers(path) == [30_000, 60_000, 90_000]
    await registry.close_all_pools()


async def test_a_lone_statement_takes_the_thread_as_often_as_it_must(path: str) -> None:
    """Once for BEGIN, once for the statement with its rows, once for COMMIT."""
    registry, config = opened(path)
    async with registry.provide_session(config) as session:
        await session.select("SELECT 1")
    link: Any = await config.link("test")
    done: list[Any] = []
    put = link.connection._tx

    class Counting:
        def put_nowait(self, work: Any) -> None:
            done.append(work)
            put.put_nowait(work)

    link.connection._tx = Counting()
    await link.release()
    async with registry.provide_session(config) as session:
        assert len(await session.select("SELECT n FROM a")) == 320
    link.connection._tx = put
    assert len(done) == 3
    await registry.close_all_pools()


async def test_nothing_stays_of_a_write_that_is_cancelled_while_it_runs(path: str) -> None:
    registry, config = opened(path, pool={"max_size": 1})

    async def work() -> None:
        async with registry.provide_session(config) as session:
            await session.execute("INSERT INTO numbers VALUES (1, 'a')")
            await session.execute(f"INSERT INTO numbers SELECT 2, x FROM ({SLOW.replace('count(*)', 'count(*) AS x')})")

    began = clock.monotonic()
    await cut(work)
    assert clock.monotonic() - began < 2  # the statement alone would take much longer
    async with registry.provide_session(config) as session:
        await session.execute("INSERT INTO numbers VALUES (3, 'a')")
    assert numbers(path) == [3]
    await registry.close_all_pools()


async def test_a_transaction_with_a_cancelled_statement_can_only_be_rolled_back(path: str) -> None:
    registry, config = opened(path)
    with pytest.raises(CommitFailed, match="was cancelled"):
        async with registry.provide_session(config) as session:
            await session.execute("INSERT INTO numbers VALUES (1, 'a')")
            await cut(lambda: session.execute(SLOW))
            with pytest.raises(UsageError, match="was cancelled"):
                await session.execute("INSERT INTO numbers VALUES (2, 'a')")
    async with registry.provide_session(config) as session:
        await cut(lambda: session.execute(SLOW))
        await session.rollback()
        await session.execute("INSERT INTO numbers VALUES (3, 'a')")
    assert numbers(path) == [3]
    await registry.close_all_pools()


async def test_a_block_undoes_a_statement_that_was_cancelled_inside(path: str) -> None:
    registry, config = opened(path)
    quick = "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 3000000) SELECT max(n) FROM c"
    async with registry.provide_session(config) as session:
        await session.execute("INSERT INTO numbers VALUES (1, 'a')")
        with pytest.raises(TimeoutError):
            async with session.transaction():
                await session.execute("INSERT INTO numbers VALUES (2, 'a')")
                async with asyncio.timeout(0.05):
                    await session.execute(quick)
        await session.execute("INSERT INTO numbers VALUES (3, 'a')")
    assert numbers(path) == [1, 3]
    await registry.close_all_pools()


async def test_a_later_block_does_not_undo_a_statement_that_was_cancelled_before_it(path: str) -> None:
    registry, config = opened(path)
    with pytest.raises(CommitFailed):
        async with registry.provide_session(config) as session:
            await session.execute("INSERT INTO numbers VALUES (1, 'a')")
            await cut(lambda: session.execute(SLOW))
            with pytest.raises(UsageError):
                async with session.transaction():
                    pass
    assert numbers(path) == []
    await registry.close_all_pools()


async def test_who_is_cancelled_while_waiting_for_the_write_lock_leaves_no_transaction(path: str) -> None:
    registry, config = opened(path, pool={"max_size": 1})
    with closing(sqlite3.connect(path, isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")

        async def work() -> None:
            async with registry.provide_session(config) as session:
                await session.execute("INSERT INTO numbers VALUES (1, 'a')")

        await cut(work)
        rival.execute("COMMIT")
        await registry.close_all_pools()
        rival.execute("PRAGMA busy_timeout = 0")
        rival.execute("BEGIN IMMEDIATE")
        rival.execute("ROLLBACK")
    assert numbers(path) == []


async def test_a_commit_that_is_cancelled_while_it_waits_for_readers_leaves_no_rows(tmp_path: Path) -> None:
    registry, config = opened(":memory:")
    async with registry.provide_session(config) as session:
        await session.execute("CREATE TABLE numbers (id INTEGER)")
    link: Any = await config.link("the reader")
    await link.do(lambda: link._raw.execute("BEGIN"))
    await link.do(lambda: link._raw.execute("SELECT * FROM numbers").fetchall())

    async def work() -> None:
        async with registry.provide_session(config) as session:
            await session.execute("INSERT INTO numbers VALUES (1)")
            await session.commit()

    await cut(work)
    await link.rollback()
    await link.release()
    await asyncio.sleep(0.2)
    async with registry.provide_session(config) as session:
        assert await session.select("SELECT * FROM numbers") == []
    await registry.close_all_pools()


async def test_who_waits_too_long_for_the_lock_is_told(path: str) -> None:
    registry, config = opened(path, pool={"timeout": 0.1})
    with closing(sqlite3.connect(path, isolation_level=None)) as rival:
        rival.execute("BEGIN IMMEDIATE")
        with pytest.raises(LockTimeoutError):
            async with registry.provide_session(config) as session:
                await session.execute("INSERT INTO numbers VALUES (1, 'a')")
    await registry.close_all_pools()


async def test_what_follows_an_error_that_dropped_the_transaction_is_not_kept(path: str) -> None:
    registry, config = opened(path)
    with pytest.raises(CommitFailed, match="ended the transaction"):
        async with registry.provide_session(config) as session:
            await session.execute("INSERT INTO numbers VALUES (1, 'a')")
            with pytest.raises(UniqueViolationError):
                await session.execute("INSERT OR ROLLBACK INTO numbers VALUES (1, 'a')")
            await session.execute("INSERT INTO numbers VALUES (2, 'a')")
    assert numbers(path) == []
    await registry.close_all_pools()


async def test_an_exhausted_pool_names_who_has_its_connections(path: str) -> None:
    registry, config = opened(path, pool={"max_size": 1}, pool_timeout=0.1)
    async with registry.provide_session(config) as session:
        await session.select_value("SELECT 1")
        with pytest.raises(PoolTimeout, match=r"for 0\.\d s"):
            async with registry.provide_session(config) as second:
                await second.select_value("SELECT 1")
    await registry.close_all_pools()


async def test_a_file_that_cannot_be_opened_is_unavailable_and_leaves_no_thread(tmp_path: Path) -> None:
    registry, config = opened(str(tmp_path / "no" / "such.db"))
    before = set(threading.enumerate())
    with pytest.raises(DatabaseUnavailable):
        async with registry.provide_session(config) as session:
            await session.select_value("SELECT 1")
    await asyncio.sleep(0.05)
    assert set(threading.enumerate()) <= before
    await registry.close_all_pools()


async def test_closing_the_pool_ends_its_threads(path: str) -> None:
    before = threading.active_count()
    registry, config = opened(path, pool={"min_size": 3})
    await config.start()
    assert threading.active_count() == before + 3
    await registry.close_all_pools()
    await asyncio.sleep(0.05)
    assert threading.active_count() == before


def test_a_loop_that_ends_closes_its_connections(path: str) -> None:
    before = threading.active_count()
    registry, config = opened(path)

    async def main() -> None:
        async with registry.provide_session(config) as session:
            assert await session.select_value("SELECT 5") == 5

    for _ in range(2):
        asyncio.run(main())
    clock.sleep(0.05)
    assert threading.active_count() == before


@pytest.mark.parametrize("ending", ["asyncio.run(main())", "asyncio.new_event_loop().run_until_complete(main())"])
def test_a_program_that_never_closes_its_pool_ends(ending: str, path: str) -> None:
    program = f"""
import asyncio
from transept import Registry
from transept.adapters.aiosqlite import AiosqliteConfig
registry = Registry()
config = AiosqliteConfig(pool_config={{"database": {path!r}}})
async def main():
    async with registry.provide_session(config) as session:
        print(await session.select_value("SELECT 5"))
{ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"database": "a.db", "iter_chunk_sizes": 3}, "iter_chunk_size"),
        ({"dsn": "mysql://localhost/a"}, "dsn='mysql://localhost/a'"),
        ({}, "'database' is needed"),
        ({"database": "a.db", "max_size": 0}, "max_size=0"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=said):
        AiosqliteConfig(pool_config=settings)


def test_a_dsn_names_the_file() -> None:
    config = AiosqliteConfig(pool_config={"dsn": "sqlite+aiosqlite:///app.db", "iter_chunk_size": 10})
    assert config._options["database"] == "app.db"
