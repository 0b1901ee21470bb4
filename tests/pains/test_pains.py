"""What hurts users of request-scoped sessions elsewhere, one test for each pain."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from held import COUNT, Postgres, calling, eventually, insert, post, served
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transept import OutsideScope, db_session, in_new_unit, is_context_initiated, new_non_ctx_atomic_session
from transept import run_in_new_ctx as in_a_session_of_its_own
from transept.extensions.fastapi import Transept as TranseptOfFastAPI
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware
from transept.extensions.starlette import add_starlette_http_db_session_middleware

pytestmark = pytest.mark.anyio


async def write(database: Any, v: int) -> None:
    await (await db_session(database)).execute(insert(v))


# A background task that was given the request's session


async def test_a_background_task_given_the_requests_session_is_told_and_loses_nothing(pg: Postgres) -> None:
    database, told = pg.dbconnect(), []

    async def mail(session: AsyncSession) -> None:
        try:
            await session.execute(insert(2))
        except OutsideScope as error:
            told.append(str(error))
        await session.rollback()
        await session.close()
        await write(database, 3)  # the task's own

    async def work() -> Response:
        session = await db_session(database)
        await session.execute(insert(1))
        return Response(status_code=201, background=BackgroundTask(mail, session))

    assert (await post(served(work))).status_code == 201
    assert (pg.held(), len(told)) == ([1, 3], 1)
    assert "POST /" in told[0]
    assert "where it is used" in told[0]


async def test_a_background_task_of_fastapi_given_the_session_of_a_dependency_is_told(pg: Postgres) -> None:
    database, told = pg.dbconnect(), []
    app = FastAPI()
    given = Depends(TranseptOfFastAPI(database, app).provide_async_session())

    async def mail(session: AsyncSession) -> None:
        try:
            await session.execute(insert(2))
        except OutsideScope as error:
            told.append(error)

    @app.post("/", status_code=201)
    async def endpoint(tasks: BackgroundTasks, session: AsyncSession = given) -> None:
        await session.execute(insert(1))
        tasks.add_task(mail, session)
        tasks.add_task(in_new_unit(write), database, 3)

    assert (await post(app)).status_code == 201
    assert (pg.held(), len(told)) == ([1, 3], 1)


# A session for each task of a gather


async def test_a_session_for_each_task_of_a_gather(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=3)

    async def one(v: int) -> int:
        session = await db_session(database)
        await session.execute(insert(v))
        return id(session)

    async def two(v: int) -> None:
        async with new_non_ctx_atomic_session(database) as session:
            await session.execute(insert(v))

    async def work() -> None:
        sessions = await asyncio.gather(*(in_a_session_of_its_own(one, v) for v in range(10)))
        assert len(set(sessions)) >= 3
        await asyncio.gather(*(two(v) for v in range(10, 20)))
        async with asyncio.TaskGroup() as group:
            for v in range(20, 25):
                group.create_task(in_new_unit(one)(v))
        await write(database, 25)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == list(range(26))


# BaseHTTPMiddleware, above and below


async def passes(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers["x-seen"] = str(is_context_initiated())
    return response


async def writes_too(request: Request, call_next: Any) -> Response:
    """As an audit middleware does, with the session of the request."""
    await write(request.app.state.database, 10)
    response: Response = await call_next(request)
    await write(request.app.state.database, 11)
    return response


def between(app: Starlette, place: str, dispatch: Any) -> Starlette:
    """With this middleware above the gate, or below it."""
    middleware = Middleware(BaseHTTPMiddleware, dispatch=dispatch)
    if place == "above":
        app.user_middleware.insert(0, middleware)
    else:
        app.user_middleware.append(middleware)
    return app


@pytest.mark.parametrize("place", ["above", "below"])
async def test_context_beside_a_base_http_middleware(pg: Postgres, place: str) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        await write(database, 1)

        async def stream() -> AsyncIterator[bytes]:
            yield b"%d" % await (await db_session(database)).scalar(COUNT)
            await write(database, 2)

        return StreamingResponse(stream(), status, background=BackgroundTask(write, database, 3))

    async with calling(between(served(work), place, passes)) as client:
        status = 201
        response = await client.post("/")
        assert (response.status_code, response.text) == (201, "1")
        assert response.headers["x-seen"] == str(place == "below")
        assert await eventually(lambda: pg.held() == [1, 2, 3])
        status = 400
        assert (await client.post("/")).status_code == 400
        assert await eventually(lambda: pg.held() == [1, 2, 3, 3])


async def test_a_base_http_middleware_below_the_gate_shares_the_session(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        await write(database, 1)
        return Response(status_code=status)

    app = between(served(work), "below", writes_too)
    app.state.database = database
    async with calling(app) as client:
        status = 201
        assert (await client.post("/")).status_code == 201
        assert pg.held() == [1, 10, 11]
        status = 400
        assert (await client.post("/")).status_code == 400
        assert pg.held() == [1, 10, 11]


async def test_a_context_variable_of_the_users_own_survives_the_gate(pg: Postgres) -> None:
    """The gate runs the app in the task and the context that it was called in."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    database = pg.dbconnect()

    async def work() -> None:
        user.set("ada")
        await write(database, 1)

    app, seen = served(work), []

    async def around(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        seen.append(user.get())

    assert (await post(around)).status_code == 201
    assert seen == ["ada"]


# Two databases and anyio.fail_after


@pytest.mark.parametrize("place", ["endpoint", "outside"])
async def test_two_databases_and_fail_after(pg: Postgres, place: str) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def slow() -> None:
        await write(first, 1)
        await write(second, 2)
        await asyncio.sleep(5)

    async def work() -> Response:
        if place == "endpoint":
            try:
                with anyio.fail_after(0.1):
                    await slow()
            except TimeoutError:
                return Response(status_code=504)
        await slow()
        return Response()

    app = served(work)

    async def timed(scope: Any, receive: Any, send: Any) -> None:
        try:
            with anyio.fail_after(0.2):
                await app(scope, receive, send)
        except TimeoutError:
            await Response(status_code=504)(scope, receive, send)

    for _ in range(7):  # more often than there are connections
        assert (await post(timed)).status_code == 504
        assert (pg.out_of_pools(), pg.in_transaction(), pg.held()) == (0, 0, [])


async def test_two_databases_and_fail_after_while_they_commit(pg: Postgres) -> None:
    """A COMMIT that was sent is never abandoned; its client is not told."""
    pg.slow_commit(0.3)
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        await write(first, 1)
        await write(second, 2)

    app = served(work)
    told: list[Any] = []

    async def timed(scope: Any, receive: Any, send: Any) -> None:
        try:
            with anyio.fail_after(0.1):
                await app(scope, receive, send)
        except TimeoutError:
            told.append(pg.held())
            await Response(status_code=504)(scope, receive, send)

    assert (await post(timed)).status_code == 504
    assert told == [[1, 2]]
    assert (pg.out_of_pools(), pg.in_transaction()) == (0, 0)


# 100 clients of server-sent events on a pool of 5


async def test_100_clients_of_server_sent_events_on_a_pool_of_5(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=5)
    most = [0]

    async def events() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            for _ in range(5):
                count = await (await db_session(database)).scalar(COUNT)
                most[0] = max(most[0], pg.out_of_pools())
                yield b"data: %d\n\n" % count
                await asyncio.sleep(0.2)  # idle, as such streams are

        return StreamingResponse(stream(), media_type="text/event-stream")

    started = asyncio.get_running_loop().time()
    async with calling(served(events)) as client:
        everybody = asyncio.gather(*(client.get("/") for _ in range(100)))
        await asyncio.sleep(0.3)
        async with calling(served(lambda: write(database, 1))) as other:
            assert (await other.post("/")).status_code == 201  # and nobody starves
        told = await everybody
    assert {one.status_code for one in told} == {200}
    assert all(one.text.count("data:") == 5 and one.text.endswith("data: 1\n\n") for one in told)
    assert most[0] <= 5
    assert asyncio.get_running_loop().time() - started < 20


# Two databases by Depends


async def test_two_databases_by_depends_are_two(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second", commit_mode="manual")
    app = FastAPI()
    db = TranseptOfFastAPI([first, second], app)
    dependencies = Depends(db.provide_async_session()), Depends(db.provide_async_session(second))

    @app.post("/", status_code=201)
    async def endpoint(one: AsyncSession = dependencies[0], two: AsyncSession = dependencies[1]) -> None:
        assert one is await db_session() is await db_session(first)
        assert two is await db_session("second") is not one
        await one.execute(insert(1))
        await two.execute(insert(2))
        await two.commit()

    assert (await post(app)).status_code == 201
    assert pg.held() == [1, 2]


# Written, answered, and read back at once by another connection


@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
async def test_what_was_answered_is_read_back_at_once_1000_times(pg: Postgres, framework: str) -> None:
    database = pg.dbconnect()

    async def create(v: int) -> None:
        await write(database, v)

    async def endpoint(request: Request) -> JSONResponse:
        await create(int(request.query_params["v"]))
        return JSONResponse(None, 201)

    app: Any
    if framework == "starlette":
        app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
        add_starlette_http_db_session_middleware(app)
    else:
        app = FastAPI()
        app.post("/", status_code=201)(create)
        add_fastapi_http_db_session_middleware(app)

    async def client(numbers: range) -> None:
        async with calling(app) as one:
            for v in numbers:
                response: httpx.Response = await one.post(f"/?v={v}")
                found = pg.look.execute("SELECT count(*) FROM held WHERE v = %s", [v]).fetchone()[0]
                assert (response.status_code, found) == (201, 1)

    pg.look.execute("CREATE INDEX ON held (v)")
    await asyncio.gather(*(client(range(start, start + 250)) for start in range(0, 1000, 250)))
    assert len(pg.held()) == 1000
