"""`before_commit`: called with each session that is about to be committed, wherever the commit comes from."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from fastapi import FastAPI
from held import VIOLATION, File, Postgres, insert, post, served
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transept import (
    BeforeCommitCallback,
    atomic_db_session,
    commit_db_session,
    current_unit,
    db_session,
    in_new_unit,
    new_non_ctx_atomic_session,
    new_non_ctx_session,
    rollback_db_session,
    run_in_new_ctx,
    sync_db_session,
    transaction,
)
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware
from transept.extensions.starlette import add_starlette_http_db_session_middleware

pytestmark = pytest.mark.anyio


class Boom(Exception):
    pass


class Asked:
    """A callback that notes the sessions it was asked about, and writes as the app may."""

    def __init__(self, pg: Postgres) -> None:
        self.pg = pg
        self.sessions: list[AsyncSession] = []
        self.held: list[list[int]] = []

    async def __call__(self, session: AsyncSession) -> None:
        self.sessions.append(session)
        self.held.append(self.pg.held())
        await session.execute(insert(100))


async def test_it_is_called_once_for_a_session_that_commits_and_its_work_is_kept(pg: Postgres) -> None:
    database, asked = pg.dbconnect(), Asked(pg)

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        assert asked.sessions == []

    callback: BeforeCommitCallback = asked
    assert (await post(served(work, callback))).status_code == 201
    assert (len(asked.sessions), asked.held, pg.held()) == (1, [[]], [1, 100])


async def test_it_is_called_once_for_each_of_two_databases(pg: Postgres) -> None:
    first, second, asked = pg.dbconnect(), pg.dbconnect(bind_key="second"), Asked(pg)
    sessions: list[Any] = []

    async def work() -> None:
        for database in (first, second):
            sessions.append(await db_session(database))
            await sessions[-1].execute(insert(1))

    assert (await post(served(work, asked))).status_code == 201
    assert asked.sessions == sessions
    assert (asked.held, pg.held()) == ([[], []], [1, 1, 100, 100])


async def test_it_is_not_called_where_nothing_is_committed(pg: Postgres) -> None:
    database, asked = pg.dbconnect(), Asked(pg)

    async def refused() -> Response:
        await (await db_session(database)).execute(insert(1))
        return Response(status_code=400)

    async def raises() -> None:
        await (await db_session(database)).execute(insert(1))
        raise Boom

    async def doomed() -> None:
        await (await db_session(database)).execute(insert(1))
        current_unit().doom()

    async def idle() -> None:
        await db_session(database)

    async def undone() -> None:
        await (await db_session(database)).execute(insert(1))
        await rollback_db_session(database)

    async def alone() -> None:
        async with new_non_ctx_session(database) as session:
            await session.execute(insert(1))

    for work, status in ((refused, 400), (raises, 500), (doomed, 201), (idle, 201), (undone, 201), (alone, 201)):
        assert (await post(served(work, asked))).status_code == status
    assert (asked.sessions, pg.held()) == ([], [])


async def test_it_is_called_wherever_the_commit_comes_from(pg: Postgres) -> None:
    database, asked = pg.dbconnect(), Asked(pg)

    async def write(v: int) -> None:
        await (await db_session(database)).execute(insert(v))

    async def by_hand() -> None:
        await write(1)
        await commit_db_session(database)

    async def atomic() -> None:
        async with atomic_db_session(database):
            await write(1)

    async def nested() -> None:
        async with atomic_db_session(database):
            async with atomic_db_session(database):
                await write(1)
            assert asked.sessions == []

    async def alone() -> None:
        await run_in_new_ctx(write, 1)

    async def wrapped() -> None:
        await in_new_unit(write)(1)

    async def new() -> None:
        async with transaction("requires_new"):
            await write(1)

    async def outside() -> None:
        async with new_non_ctx_atomic_session(database) as session:
            await session.execute(insert(1))

    async def after() -> Response:
        async def task() -> None:
            await write(1)

        return Response(status_code=201, background=BackgroundTask(task))

    async def body() -> Response:
        async def stream() -> Any:
            await write(1)
            yield b"abc"

        return StreamingResponse(stream(), 201)

    for work in (by_hand, atomic, nested, alone, wrapped, new, outside, after, body):
        assert (await post(served(work, asked))).status_code == 201
        assert (len(asked.sessions), pg.held()) == (1, [1, 100]), work.__name__
        asked.sessions.clear()
        pg.look.execute("TRUNCATE held")


async def test_what_it_raises_rolls_back_and_is_told_to_the_client(pg: Postgres) -> None:
    database = pg.dbconnect()
    ran: list[int] = []

    async def fails(session: AsyncSession) -> None:
        await session.execute(insert(2))
        raise Boom("no")

    async def background() -> None:
        ran.append(1)

    async def work() -> Response:
        await (await db_session(database)).execute(insert(1))
        return Response(status_code=201, background=BackgroundTask(background))

    async def handler(request: Any, error: Exception) -> Response:
        return JSONResponse(str(error), 409)

    assert (await post(served(work, fails))).status_code == 500
    response = await post(served(work, fails, handlers={Boom: handler}))
    assert (response.status_code, response.json(), pg.held(), ran) == (409, "no", [], [])
    assert pg.out_of_pools() == 0


async def test_an_error_of_the_database_inside_it_is_told_as_well(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def violates(session: AsyncSession) -> None:
        await session.execute(VIOLATION)

    async def swallows(session: AsyncSession) -> None:
        with suppress(Exception):
            await session.execute(text("SELECT nonsense"))

    async def conflict(request: Any, error: Exception) -> Response:
        return Response(status_code=409)

    async def work() -> None:
        await (await db_session(database)).execute(insert(1))

    assert (await post(served(work, violates, handlers={IntegrityError: conflict}))).status_code == 409
    assert (await post(served(work, swallows))).status_code == 500
    assert pg.held() == []


async def test_a_failure_in_a_block_of_its_own_leaves_the_rest_alone(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def fails_for_two(session: AsyncSession) -> None:
        if 2 in (await session.scalars(text("SELECT v FROM held"))).all():
            raise Boom

    async def work() -> Response:
        for v in (1, 2):
            with suppress(Boom):
                async with atomic_db_session(database) as session:
                    await session.execute(insert(v))
        with suppress(Boom):
            async with new_non_ctx_atomic_session(database) as session:
                await session.execute(insert(2))
        await (await db_session(database)).execute(insert(3))
        return Response(status_code=201)

    assert (await post(served(work, fails_for_two))).status_code == 201
    assert pg.held() == [1, 3]


async def test_a_plain_callback_and_a_sync_database(file: File) -> None:
    database = file.sync_config()
    asked: list[Any] = []

    def endpoint(request: Request) -> Response:
        sync_db_session(database).execute(insert(1))
        return Response(status_code=201)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    add_starlette_http_db_session_middleware(app, asked.append)
    assert ((await post(app)).status_code, file.held()) == (201, [1])
    assert [isinstance(one, Session) for one in asked] == [True]


async def test_with_fastapi(pg: Postgres) -> None:
    database, asked = pg.dbconnect(), Asked(pg)
    app = FastAPI()
    add_fastapi_http_db_session_middleware(app, before_commit=asked)

    @app.post("/", status_code=201)
    async def endpoint() -> None:
        await (await db_session(database)).execute(insert(1))

    assert (await post(app)).status_code == 201
    assert (len(asked.sessions), pg.held()) == (1, [1, 100])
