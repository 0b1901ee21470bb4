"""Fixtures by hand, as in the references: a test's own session, and the app's sessions as savepoints in it."""

from __future__ import annotations

import asyncio
from contextvars import Context

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from testing_kit.conftest import Use

from transept import (
    ContextAlreadyInitiatedError,
    DBConnect,
    OutsideScope,
    commit_db_session,
    db_session,
    get_db_session_from_context,
    is_context_initiated,
    unit_of_work,
)
from transept.alchemy import SQLAlchemyAsyncConfig
from transept.testing import SandboxLeak, put_savepoint_session_in_ctx, rollback_session, set_test_context

pytestmark = pytest.mark.anyio

COUNT = text("SELECT count(*) FROM held")
INSERT = text("INSERT INTO held VALUES (1)")


@pytest.fixture(params=["DBConnect", "SQLAlchemyAsyncConfig"])
async def connection(request, postgres_cell):
    url = postgres_cell.engine.url("asyncpg")
    if request.param == "DBConnect":
        made = DBConnect(lambda host: create_async_engine(url), async_sessionmaker, host="x")
    else:
        made = SQLAlchemyAsyncConfig(connection_string=url, commit_mode="autocommit_include_redirect")
    yield made
    await made.stop()


@pytest.fixture
def client(postgres_cell, connection):
    async def write(use: Use) -> None:
        await (await db_session(connection)).execute(INSERT)

    async def refuse(use: Use) -> int:
        await use.session.execute(INSERT)
        return 409

    async def violate(use: Use) -> None:
        await use.session.execute(text("INSERT INTO child VALUES (99)"))

    handlers = {"write": write, "refuse": refuse, "violate": violate}
    app = postgres_cell.app(connection, handlers)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://t")


@pytest.fixture(autouse=True)
async def nothing_stays(postgres_cell):
    yield
    assert postgres_cell.engine.held() == []
    assert postgres_cell.engine.open_transactions() == 0


async def test_a_session_that_is_rolled_back(connection, postgres_cell):
    async with rollback_session(connection) as session:
        await session.execute(INSERT)
        assert await session.scalar(COUNT) == 1
        assert postgres_cell.engine.held() == []


async def test_a_context_for_the_apps_functions(connection):
    async with set_test_context(auto_close=True):
        assert is_context_initiated()
        session = await db_session(connection)
        await session.execute(INSERT)
        assert await db_session(connection) is session
        with pytest.raises(ContextAlreadyInitiatedError):
            async with set_test_context():
                pass
    assert not is_context_initiated()
    with pytest.raises(OutsideScope):
        await session.execute(INSERT)


async def test_requests_are_parts_of_the_tests_transaction(connection, client, postgres_cell):
    async with (
        rollback_session(connection) as session,
        set_test_context(),
        put_savepoint_session_in_ctx(connection, session),
    ):
        await session.execute(INSERT)
        paths = ("write", "refuse", "violate", "write")
        assert [(await client.post(f"/{path}")).status_code for path in paths] == [200, 409, 500, 200]
        assert await session.scalar(COUNT) == 3
        assert postgres_cell.engine.held() == []


async def test_the_contexts_own_session_is_a_part_too(connection, postgres_cell):
    async with (
        rollback_session(connection) as session,
        set_test_context(),
        put_savepoint_session_in_ctx(connection, session) as own,
    ):
        assert get_db_session_from_context(connection) is own is await db_session(connection)
        await own.execute(INSERT)
        await commit_db_session(connection)
        await own.execute(INSERT)
        await own.rollback()
        assert await session.scalar(COUNT) == 1
        assert postgres_cell.engine.held() == []
    assert connection._source is None


async def test_concurrent_requests_wait_for_each_other(connection, client):
    async with (
        rollback_session(connection) as session,
        set_test_context(),
        put_savepoint_session_in_ctx(connection, session),
    ):
        answers = await asyncio.gather(*[client.post("/write") for _ in range(5)])
        assert [answer.status_code for answer in answers] == [200] * 5
        assert await session.scalar(COUNT) == 5


async def test_a_unit_that_is_left_open_is_a_leak(connection):
    async def leak() -> None:
        unit = await unit_of_work().__aenter__()
        await unit.session(connection).execute(INSERT)
        leaked.append(unit)

    leaked = []
    async with rollback_session(connection) as session, set_test_context():
        with pytest.raises(SandboxLeak, match="in leak"):
            async with put_savepoint_session_in_ctx(connection, session):
                await asyncio.get_running_loop().create_task(leak(), context=Context())


async def test_without_a_context_there_is_nowhere_to_put_it(connection):
    async with rollback_session(connection) as session:
        with pytest.raises(OutsideScope):
            async with put_savepoint_session_in_ctx(connection, session):
                pass
