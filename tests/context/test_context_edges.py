"""Blocks at their worst: cancelled, interleaved, ended by the server, around a response or inside one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from held import COUNT, File, Postgres, calling, insert, post, served, websocket
from servers.proxy import FaultProxy
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute

from transept import (
    ASGIHTTPDBSessionMiddleware,
    CommitFailed,
    UsageError,
    atomic_db_session,
    commit_db_session,
    db_session,
    is_context_initiated,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.adapters.asyncpg import AsyncpgConfig
from transept.alchemy import SQLAlchemySyncConfig
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware

pytestmark = pytest.mark.anyio

BLOCKS: list[Any] = [
    lambda database: atomic_db_session(database),
    lambda database: transaction(),
    lambda database: transaction("nested"),
]
NAMES = ["atomic", "required", "nested"]


class Boom(Exception):
    pass


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)


async def write(database: Any, v: int) -> None:
    await (await db_session(database)).execute(insert(v))


# In a body


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
async def test_a_block_around_the_chunks_of_a_body_is_kept_as_a_whole_or_not_at_all(pg: Postgres, block: Any) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            async with block(database):
                await write(database, 1)
                yield b"a"
                await write(database, 2)
                yield b"b"
                if fails:
                    raise Boom

        return StreamingResponse(stream())

    fails = True
    with suppress(Boom):
        async with calling(served(work), raises=True) as client:
            await client.get("/")
    assert (pg.held(), pg.out_of_pools()) == ([], 0)
    fails = False
    assert ((await post(served(work))).text, pg.held()) == ("ab", [1, 2])


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
async def test_a_block_in_a_websocket_is_kept_as_a_whole_or_not_at_all(pg: Postgres, block: Any) -> None:
    database = pg.dbconnect()

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        with suppress(Boom):
            async with block(database):
                await write(database, 1)
                await websocket.send_json(1)
                v = await websocket.receive_json()
                await write(database, v)
                if v == 3:
                    raise Boom

    app = ASGIHTTPDBSessionMiddleware(Starlette(routes=[WebSocketRoute("/", socket)]))
    with suppress(Exception):  # CommitFailed where the error was swallowed
        await websocket(app, 3)
    assert (pg.held(), pg.out_of_pools()) == ([], 0)
    await websocket(app, 2)
    assert pg.held() == [1, 2]


# Around a response


@pytest.mark.parametrize("block", BLOCKS, ids=NAMES)
async def test_a_block_in_a_dependency_around_the_endpoint(pg: Postgres, block: Any) -> None:
    database = pg.dbconnect()
    app = FastAPI()
    add_fastapi_http_db_session_middleware(app)

    async def around() -> AsyncIterator[None]:
        async with block(database):
            yield

    @app.post("/", status_code=201, dependencies=[Depends(around)])
    async def endpoint(status: int) -> None:
        await write(database, status)
        if status == 500:
            raise Boom
        if status != 201:
            raise HTTPException(status)

    async with calling(app) as client:
        for status in (201, 404, 500):
            assert (await client.post(f"/?status={status}")).status_code == status
            assert (pg.held(), pg.out_of_pools()) == ([201], 0)


# Ended by the server


async def test_a_nested_block_whose_transaction_the_server_ended_is_no_success(file: File) -> None:
    database = file.config()

    async def work() -> None:
        await write(database, 1)
        with suppress(DBAPIError):
            async with transaction("nested"):
                session = await db_session(database)
                await session.execute(text("INSERT INTO parent VALUES (1)"))
                await session.execute(text("INSERT OR ROLLBACK INTO parent VALUES (1)"))
        await write(database, 2)

    assert (await post(served(work))).status_code == 500
    assert file.held() == []


@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[2]], ids=["atomic", "nested"])
async def test_a_nested_block_that_cannot_be_undone_is_no_success(pg: Postgres, block: Any) -> None:
    """The app committed behind the session's back, so the savepoint is gone."""
    database = pg.dbconnect()

    async def work() -> None:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            with suppress(Boom):
                async with block(database):
                    await session.execute(insert(2))
                    await session.execute(text("COMMIT AND CHAIN"))
                    await session.execute(insert(3))
                    raise Boom
            await session.execute(insert(4))

    assert (await post(served(work))).status_code == 500
    assert pg.held() == [1, 2]


@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[2]], ids=["atomic", "nested"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_inside_a_savepoint_the_session_itself_refuses_to_end_the_transaction(
    pg: Postgres, block: Any, end: str
) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            async with block(database):
                await session.execute(insert(2))
                async with session.begin_nested():  # the app's own savepoints end as ever
                    await session.execute(insert(3))
                with pytest.raises(UsageError, match=rf"session\.{end}\(\) on database 'default' inside a block"):
                    await getattr(session, end)()
                await session.execute(insert(4))
            with suppress(Boom):
                async with block(database):
                    await session.execute(insert(5))
                    raise Boom
        await session.execute(insert(6))
        await getattr(session, end)()  # no block is open any more

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2, 3, 4, 6][: 5 if end == "commit" else 4]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_inside_a_savepoint_a_sync_session_refuses_as_well(file: File, end: str) -> None:
    database = file.sync_config()
    with unit_of_work() as unit:
        session = unit.session(database)
        session.execute(insert(1))
        with unit_of_work():
            with pytest.raises(UsageError, match=rf"session\.{end}\(\)"):
                getattr(session, end)()
            session.execute(insert(2))
    assert file.held() == [1, 2]


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_inside_a_savepoint_a_sql_session_refuses_as_well(pg: Postgres, end: str) -> None:
    database = AsyncpgConfig(pool_config={"dsn": pg.server.dsn})
    async with unit_of_work() as unit:
        session = unit.session(database)
        await session.execute("INSERT INTO held VALUES (1)")
        async with unit_of_work():
            with pytest.raises(UsageError, match=rf"session\.{end}\(\)"):
                await getattr(session, end)()
            await session.execute("INSERT INTO held VALUES (2)")
        with suppress(Boom):
            async with unit_of_work():
                raise Boom
        await session.commit()
        assert pg.held() == [1, 2]
    await database.stop()


async def test_nested_blocks_of_two_tasks_that_interleave_tell_no_lie(pg: Postgres) -> None:
    database = pg.dbconnect()
    steps = [asyncio.Event() for _ in range(3)]

    async def first() -> None:
        async with transaction("nested"):
            await write(database, 1)
            steps[0].set()
            await steps[1].wait()
        steps[2].set()

    async def second() -> None:
        await steps[0].wait()
        async with transaction("nested"):
            await write(database, 2)
            steps[1].set()
            await steps[2].wait()
            raise Boom

    async def work() -> None:
        await write(database, 0)
        await asyncio.gather(first(), second(), return_exceptions=True)

    response = await post(served(work))
    assert (response.status_code, pg.held()) in ((201, [0, 1]), (500, []))


# Cancelled while they begin


@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[2]], ids=["atomic", "nested"])
async def test_a_block_that_was_cancelled_while_it_began_is_not_open(pg: Postgres, block: Any) -> None:
    with FaultProxy(pg.server.host, pg.server.port) as proxy:
        database = pg.dbconnect(port=proxy.port)

        async def work() -> Response:
            with suppress(Boom):
                async with atomic_db_session(database) as session:
                    await session.execute(insert(1))
                    session.add(Parent(id=1))  # is flushed before the savepoint
                    proxy.on(b"INSERT INTO parent", "hold")
                    asyncio.get_running_loop().call_later(0.4, lambda: (proxy.clear(), proxy.release()))
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.1), block(database):
                            raise AssertionError("not reached")
                    raise Boom
            await session.execute(insert(2))
            await commit_db_session(database)
            return Response(status_code=400)

        assert (await post(served(work))).status_code == 400
        assert (pg.held(), pg.out_of_pools()) == ([2], 0)
        await database.close()


# In another context than it was entered in


async def test_a_block_may_be_left_in_another_context(pg: Postgres) -> None:
    """As asynchronous generators and fixtures are."""
    database = pg.dbconnect()

    async def fixture() -> AsyncIterator[None]:
        async with unit_of_work():
            await write(database, 1)
            yield

    generator = fixture()
    await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
    assert not is_context_initiated()
    with suppress(StopAsyncIteration):
        await anext(generator)
    assert (pg.held(), is_context_initiated()) == ([1], False)


async def test_the_connection_is_not_held_while_a_block_has_done_nothing(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=1)

    async def work() -> None:
        async with transaction(), transaction("nested"), atomic_db_session(database) as session:
            async with database.get_engine().connect() as other:
                await other.execute(COUNT)
            await session.execute(insert(1))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


# Several databases


async def test_a_nested_block_over_two_databases_is_undone_on_both(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        await write(first, 1)
        with suppress(Boom):
            async with transaction("nested"):
                await write(first, 2)
                await write(second, 3)  # used here first: undone as a whole
                raise Boom
        await write(second, 4)
        with suppress(Boom):
            async with transaction("nested"):
                await write(first, 5)
                await write(second, 6)
                raise Boom
        async with transaction("nested"):
            await write(first, 7)
            await write(second, 8)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 4, 7, 8]


async def test_an_error_in_a_required_block_fails_the_commit_of_every_database(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        await write(first, 1)
        await write(second, 2)
        with suppress(Boom):
            async with transaction():
                await write(first, 3)
                raise Boom
        for database in (first, second):
            with pytest.raises(CommitFailed):
                await commit_db_session(database)
        assert pg.out_of_pools() == 0
        await write(first, 4)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [4]


async def test_a_nested_block_that_one_database_refuses_tells_no_lie(pg: Postgres) -> None:
    """The other one's savepoint may be released already, and then nothing is kept."""
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        await write(first, 1)
        await write(second, 2)
        with pytest.raises(CommitFailed, match="nonsense"):
            async with transaction("nested"):
                await write(first, 3)
                await write(second, 4)
                with suppress(DBAPIError):
                    await (await db_session(second)).execute(text("SELECT nonsense"))

    response = await post(served(work))
    assert (response.status_code, pg.held()) in ((201, [1, 2]), (500, []))


def test_a_savepoint_on_a_blocking_sqlite_engine_of_the_apps_own_commits_nothing(file: File) -> None:
    engine = create_engine(file.url("pysqlite"))
    database = SQLAlchemySyncConfig(engine_instance=engine)
    with suppress(Boom), transaction():
        session = sync_db_session(database)
        session.execute(COUNT)
        with transaction("nested"):
            session.execute(insert(1))
        with session.begin_nested():
            session.execute(insert(2))
        raise Boom
    assert file.held() == []
    with transaction():
        sync_db_session(database).execute(COUNT)
        with transaction("nested"):
            sync_db_session(database).execute(insert(3))
    assert file.held() == [3]
    engine.dispose()
