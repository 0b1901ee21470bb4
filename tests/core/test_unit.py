"""Units of work outside of requests, in both colours."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest
from sqlalchemy import text

from transept import (
    CommitFailed,
    OutsideScope,
    UsageError,
    after_commit,
    after_rollback,
    current_unit,
    doom,
    unit_of_work,
)
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

pytestmark = pytest.mark.anyio


@pytest.fixture
def blocking(tmp_path):
    database = SQLAlchemySyncConfig(connection_string=f"sqlite:///{tmp_path}/unit.db")
    with database.get_engine().begin() as connection:
        connection.execute(text("CREATE TABLE held (v INTEGER UNIQUE)"))
    yield database
    database.get_engine().dispose()


@pytest.fixture
async def awaiting(blocking, tmp_path):
    database = SQLAlchemyAsyncConfig(connection_string=f"sqlite+aiosqlite:///{tmp_path}/unit.db")
    yield database
    await database.stop()


def held(database):
    with database.get_engine().connect() as connection:
        return list(connection.scalars(text("SELECT v FROM held ORDER BY v")))


def insert(session, v):
    return session.execute(text("INSERT INTO held VALUES (:v)"), {"v": v})


def test_a_block_is_kept_as_a_whole(blocking):
    with unit_of_work() as unit:
        insert(unit.session(blocking), 1)
        assert unit is current_unit()
        assert unit.session(blocking) is unit.session(blocking)
    assert held(blocking) == [1]


def test_a_session_is_over_with_its_block(blocking):
    with unit_of_work() as unit:
        session = unit.session(blocking)
    with pytest.raises(OutsideScope, match="test_a_session_is_over_with_its_block"):
        insert(session, 1)
    with pytest.raises(OutsideScope):
        session.commit()
    session.rollback()
    session.close()
    with pytest.raises(OutsideScope):
        unit.session(SQLAlchemySyncConfig(connection_string="sqlite://"))
    with pytest.raises(OutsideScope):
        unit.after_commit(print)


def test_without_a_unit_the_error_says_how_to_open_one():
    for ask in (current_unit, doom, lambda: after_commit(print), lambda: after_rollback(print)):
        with pytest.raises(OutsideScope, match="unit_of_work"):
            ask()


def test_blocks_nest_as_savepoints_and_hooks_follow_them(blocking):
    ran = []
    with unit_of_work() as unit:
        insert(unit.session(blocking), 1)
        after_commit(lambda: ran.append("outer"))
        with pytest.raises(ZeroDivisionError), unit_of_work():
            insert(unit.session(blocking), 2)
            after_commit(lambda: ran.append("undone"))
            after_rollback(lambda: ran.append("undone, too"))
            raise ZeroDivisionError
        with unit_of_work():
            insert(unit.session(blocking), 3)
            after_commit(lambda: ran.append("inner"))
            with unit_of_work():
                insert(unit.session(blocking), 4)
        assert ran == []
    assert held(blocking) == [1, 3, 4]
    assert ran == ["outer", "inner"]


def test_a_block_that_begins_the_transaction_is_undone_whole(blocking):
    with unit_of_work() as unit:
        with pytest.raises(ZeroDivisionError), unit_of_work():
            insert(unit.session(blocking), 1)
            raise ZeroDivisionError
        insert(unit.session(blocking), 2)
    assert held(blocking) == [2]


def test_hooks_follow_the_sessions_own_savepoints(blocking):
    ran = []
    with unit_of_work() as unit:
        session = unit.session(blocking)
        insert(session, 1)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            after_commit(lambda: ran.append("undone"))
            raise ZeroDivisionError
        with session.begin_nested():
            after_commit(lambda: ran.append("kept"))
    assert ran == ["kept"]


def test_a_doomed_unit_keeps_nothing(blocking):
    ran = []
    with unit_of_work() as unit:
        insert(unit.session(blocking), 1)
        after_commit(lambda: ran.append("committed"))
        after_rollback(lambda: ran.append("rolled back"))
        unit.doom("no")
    assert (held(blocking), ran) == ([], ["rolled back"])


def test_an_async_hook_is_refused_in_a_blocking_unit_when_it_is_registered(blocking):
    async def hook(word=""):
        raise AssertionError

    with unit_of_work():
        for one in (hook, functools.partial(hook, "x")):
            with pytest.raises(UsageError, match="async"):
                after_commit(one)
        with pytest.raises(UsageError, match="callable"):
            after_commit("no")


async def test_an_async_unit_runs_hooks_of_both_colours_in_order(awaiting, blocking):
    ran = []

    async def coroutine():
        ran.append(("async", threading.current_thread() is threading.main_thread()))

    async with unit_of_work() as unit:
        await insert(unit.session(awaiting), 1)
        after_commit(lambda: ran.append(("plain", threading.current_thread() is threading.main_thread())))
        after_commit(coroutine)
        after_commit(lambda: coroutine())
    assert ran == [("plain", False), ("async", True), ("async", True)]


async def test_what_a_hook_writes_with_the_units_session_is_kept(awaiting, blocking):
    async with unit_of_work() as unit:
        session = unit.session(awaiting)
        await insert(session, 1)

        async def hook():
            await insert(session, 2)

        after_commit(hook)
    assert held(blocking) == [1, 2]


def test_an_async_database_is_refused_in_a_blocking_unit(tmp_path):
    database = SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://")
    with unit_of_work() as unit, pytest.raises(UsageError, match="async with unit_of_work"):
        unit.session(database)


async def test_a_blocking_block_inside_a_unit_with_async_databases_is_refused(awaiting):
    async with unit_of_work() as unit:
        unit.session(awaiting)
        with pytest.raises(UsageError, match="async with unit_of_work"), unit_of_work():
            pass


def test_the_apps_own_commit_fails_too_when_its_transaction_is_gone(blocking):
    with pytest.raises(CommitFailed, match="UNIQUE"), unit_of_work() as unit:
        session = unit.session(blocking)
        insert(session, 1)
        with pytest.raises(Exception, match="UNIQUE"):
            session.execute(text("INSERT OR ROLLBACK INTO held VALUES (1)"))
        insert(session, 2)
        session.commit()
    assert held(blocking) == []


async def test_units_of_tasks_are_their_own(awaiting, blocking):
    async def work(v):
        async with unit_of_work() as unit:
            await insert(unit.session(awaiting), v)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(v) for v in range(5)))
    assert held(blocking) == [0, 1, 2, 3, 4]


def test_a_unit_of_work_serves_one_block():
    block = unit_of_work()
    with block:
        pass
    with pytest.raises(RuntimeError, match="one block"), block:
        pass
