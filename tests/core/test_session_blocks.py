"""The end of a session's own block (`begin()`, `begin_nested()`) takes the session's turn, as a statement does."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import text

from transept import ConcurrentUseError, OutsideScope, unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

pytestmark = pytest.mark.anyio

SLOW = text("SELECT pg_sleep(0.3)")


def insert(v):
    return text(f"INSERT INTO held VALUES ({v})")


@pytest.fixture
def held(postgres):
    postgres.execute("DROP TABLE IF EXISTS held", "CREATE TABLE held (v integer)")
    return lambda: [v for (v,) in postgres.execute("SELECT v FROM held ORDER BY v")]


@pytest.fixture
def config(postgres):
    return SQLAlchemyAsyncConfig(connection_string=postgres.url("asyncpg"))


@pytest.mark.parametrize("then", ["commit", "rollback"])
async def test_two_tasks_that_end_their_blocks_at_once(config, held, then):
    async with unit_of_work() as unit:
        session = unit.session(config)
        outer = await session.begin_nested()
        await session.execute(insert(1))
        inner = await session.begin_nested()
        await session.execute(insert(2))
        first, second = await asyncio.gather(inner.rollback(), getattr(outer, then)(), return_exceptions=True)
        assert first is None
        assert isinstance(second, ConcurrentUseError)
        await outer.commit()
    assert held() == [1]


@pytest.mark.parametrize("begin", ["begin", "begin_nested"])
async def test_a_block_that_ends_while_another_task_runs_a_statement(config, held, begin):
    async with unit_of_work() as unit:
        session = unit.session(config)
        with pytest.raises(ConcurrentUseError):
            async with getattr(session, begin)():
                await session.execute(insert(1))
                slow = asyncio.create_task(session.scalar(SLOW))
                await asyncio.sleep(0.1)
        await slow
        await session.execute(insert(2))
    assert held() == [1, 2]


def test_a_thread_that_ends_a_block_while_another_runs_a_statement(postgres, held):
    config = SQLAlchemySyncConfig(connection_string=postgres.url("psycopg"))
    with unit_of_work() as unit:
        session = unit.session(config)
        with pytest.raises(ConcurrentUseError), session.begin_nested():
            session.execute(insert(1))
            slow = threading.Thread(target=session.execute, args=(SLOW,))
            slow.start()
            slow.join(0.1)
        slow.join()
        session.execute(insert(2))
    config.get_engine().dispose()
    assert held() == [1, 2]


async def test_a_block_that_ends_after_its_unit(config, held):
    async with unit_of_work() as unit:
        session = unit.session(config)
        await session.execute(insert(1))
        block = await session.begin_nested()
    with pytest.raises(OutsideScope):
        await block.commit()
    await block.rollback()
    assert held() == [1]


async def test_blocks_in_turn_are_as_they_were(config, held):
    async with unit_of_work() as unit:
        session = unit.session(config)
        async with session.begin():
            await session.execute(insert(1))
            with pytest.raises(ZeroDivisionError):
                async with session.begin_nested():
                    await session.execute(insert(2))
                    raise ZeroDivisionError
            async with session.begin_nested():
                await session.execute(insert(3))
        assert held() == [1, 3]
        with pytest.raises(ZeroDivisionError):
            async with session.begin():
                await session.execute(insert(4))
                raise ZeroDivisionError
        await session.execute(insert(5))
    assert held() == [1, 3, 5]
