"""A cancelled statement of aiosqlite: nothing of it is kept, and its lock is gone soon."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import closing, suppress

import pytest
from held import insert
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

from transept import unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig

pytestmark = pytest.mark.anyio

FOR_EVER = text(
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) INSERT INTO held SELECT sum(i) FROM n"
)


@pytest.fixture(params=["ours", "the app's", "the app's, in autocommit"])
async def config(request, file):
    if request.param == "ours":
        yield file.config()
        return
    engine = create_async_engine(file.url())
    if request.param.endswith("autocommit"):  # as SQLAlchemy's documentation has it, for BEGIN by hand

        @event.listens_for(engine.sync_engine, "connect")
        def connected(connection, record):
            connection.isolation_level = None

        @event.listens_for(engine.sync_engine, "begin")
        def begun(connection):
            connection.exec_driver_sql("BEGIN")

    yield SQLAlchemyAsyncConfig(engine_instance=engine)
    await engine.dispose()


async def driver_of(session):
    return (await (await session.connection()).get_raw_connection()).driver_connection


async def works(config):
    """Another unit finds no lock, and writes."""
    async with unit_of_work() as unit:
        await unit.session(config).execute(insert(7))


def hold_up(driver, busy, waiting):
    """The statement has its cursor by then."""

    def before(*_):
        loop = asyncio.get_running_loop()
        driver._tx.put_nowait((loop.create_future(), busy.wait))
        loop.call_later(0.05, waiting.set)

    return before


async def dropped_in_the_queue(config, statement, busy):
    """Cancels a unit while its statement waits behind the aiosqlite thread's present work, which then goes on."""
    waiting = asyncio.Event()

    async def work():
        async with unit_of_work() as unit:
            session = unit.session(config)
            await session.execute(insert(1))
            driver = await driver_of(session)
            event.listen(
                (await session.connection()).sync_connection,
                "before_cursor_execute",
                hold_up(driver, busy, waiting),
                once=True,
            )
            await session.execute(statement)

    task = asyncio.create_task(work())
    await waiting.wait()
    task.cancel()
    await asyncio.sleep(0.05)
    busy.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_statement_that_still_waits_for_its_thread_leaves_nothing(config, file):
    await dropped_in_the_queue(config, insert(2), threading.Event())
    await works(config)
    assert file.held() == [7]


async def test_a_long_statement_that_still_waits_for_its_thread_is_stopped(config, file):
    async with asyncio.timeout(3):
        await dropped_in_the_queue(config, FOR_EVER, threading.Event())
    await works(config)
    assert file.held() == [7]


@pytest.mark.parametrize("turns", range(25))
async def test_a_statement_dropped_at_any_moment_leaves_nothing(config, file, turns):
    begun = asyncio.Event()

    async def work():
        async with unit_of_work() as unit:
            for v in range(40):
                await unit.session(config).execute(insert(v))
                begun.set()
            raise AssertionError

    task = asyncio.create_task(work())
    await begun.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await works(config)
    assert file.held() == [7]


async def test_a_statement_that_runs_python_code_is_stopped_and_the_loop_goes_on(config, file):
    """SQLite holds its lock, and waits for Python's: whoever held that one and waited for the first would for ever."""

    async def work():
        async with unit_of_work() as unit:
            session = unit.session(config)
            await session.execute(insert(1))
            driver = await driver_of(session)
            await driver.create_function("slow", 1, lambda i: time.sleep(0.001) or i)
            await session.execute(text(str(FOR_EVER).replace("sum(i)", "sum(slow(i))")))

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    task.cancel()
    async with asyncio.timeout(3):
        await asyncio.wait([task])
    assert task.cancelled()
    await works(config)
    assert file.held() == [7]


async def test_the_loop_never_waits_for_a_statement_that_waits_for_a_lock(config, file):
    """SQLite waits with its own lock held, and hears of no interrupt."""

    async def work():
        async with unit_of_work() as unit:
            await unit.session(config).execute(insert(2))

    with closing(sqlite3.connect(file.path)) as other:
        other.execute("INSERT INTO held VALUES (1)")
        task = asyncio.create_task(work())
        await asyncio.sleep(0.2)
        task.cancel()
        before = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - before < 0.5
        other.commit()
    await asyncio.wait([task])
    assert task.cancelled()
    assert file.held() == [1]
