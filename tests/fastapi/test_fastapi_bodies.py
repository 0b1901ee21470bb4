"""Streams, server-sent events and background tasks of FastAPI."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from held import COUNT, File, Postgres, calling, get, http, insert, out_of_pool, post
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.routing import Mount

from transept import OpenCursorError, OutsideScope, in_new_unit, unit_of_work
from transept.extensions.fastapi import SQLAlchemyAsyncConfig, Transept

pytestmark = pytest.mark.anyio

ROWS = text("SELECT v FROM held ORDER BY v")


def app_with(config: Any) -> tuple[FastAPI, Transept, Any]:
    """An app, its databases, and the annotation of its session."""
    app = FastAPI()
    db = Transept(config, app)
    return app, db, Annotated[Any, Depends(db.provide_session())]


def body(told: list[Any]) -> bytes:
    return b"".join(message.get("body", b"") for message in told)


def fill(tables: Postgres, count: int) -> None:
    tables.look.execute(f"INSERT INTO held SELECT generate_series(1, {count})")


# Background tasks


async def test_a_background_task_given_the_requests_session_is_told_what_to_do(file: File) -> None:
    app, _, injected = app_with(file.config())

    async def log(session: AsyncSession) -> None:
        await session.execute(insert(2))

    @app.post("/", status_code=201)
    async def write(session: injected, tasks: BackgroundTasks) -> None:
        await session.execute(insert(1))
        tasks.add_task(log, session)

    async with calling(app, raises=True) as client:
        with pytest.raises(OutsideScope, match=r"db.get_session\(\) there gives a fresh one"):
            await client.post("/")
    assert file.held() == [1]
    assert (await post(app)).status_code == 201


async def test_a_background_task_gets_a_fresh_session_from_the_request(file: File) -> None:
    config = file.config()
    app, db, injected = app_with(config)
    seen: list[Any] = []

    async def log(request: Request) -> None:
        seen.append((file.held(), out_of_pool(config)))
        await db.get_async_session(request).execute(insert(2))

    async def logged(request: Request, tasks: BackgroundTasks) -> None:
        tasks.add_task(log, request)

    @app.post("/", status_code=201, dependencies=[Depends(logged)])
    async def write(session: injected) -> None:
        await session.execute(insert(1))

    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert seen == [([1], 0)]
    assert file.held() == [1, 2]


async def test_a_plain_background_task_works_with_a_blocking_session(file: File) -> None:
    app, db, injected = app_with(file.sync_config())

    def log(request: Request) -> None:
        db.get_sync_session(request).execute(insert(2))

    @app.post("/", status_code=201)
    def write(session: injected, request: Request, tasks: BackgroundTasks) -> None:
        session.execute(insert(1))
        tasks.add_task(log, request)

    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert file.held() == [1, 2]


async def test_a_task_in_a_unit_of_its_own_stands_when_the_next_one_fails(file: File) -> None:
    app, db, injected = app_with(file.config())

    async def log(request: Request, v: int) -> None:
        async with db.with_async_session() as session:
            await session.execute(insert(v))

    async def fail(request: Request) -> None:
        await db.get_session(request).execute(insert(9))
        raise ValueError

    @app.post("/", status_code=201)
    async def write(session: injected, request: Request, tasks: BackgroundTasks) -> None:
        await session.execute(insert(1))
        tasks.add_task(in_new_unit(log), request, 2)
        tasks.add_task(fail, request)

    assert (await post(app)).status_code == 201
    assert file.held() == [1, 2]


async def test_no_background_task_runs_for_a_request_that_failed_to_commit(pg: Postgres) -> None:
    app, _, injected = app_with(pg.config())
    ran: list[int] = []

    @app.post("/", status_code=201)
    async def write(session: injected, tasks: BackgroundTasks) -> None:
        await session.execute(text("INSERT INTO child VALUES (99)"))
        tasks.add_task(ran.append, 1)

    assert (await post(app)).status_code == 500
    assert ran == []


# Streams


async def test_a_streaming_response_reads_from_a_cursor_in_its_generator(pg: Postgres) -> None:
    config = pg.config()
    app, _, injected = app_with(config)

    @app.get("/")
    async def export(session: injected) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            async for v in await session.stream_scalars(ROWS):
                yield f"{v},"

        return StreamingResponse(rows())

    fill(pg, 100)
    assert (await get(app)).text == "".join(f"{v}," for v in range(1, 101))
    assert out_of_pool(config) == 0


async def test_a_cursor_opened_by_the_endpoint_is_an_error_before_the_first_byte(pg: Postgres) -> None:
    app, _, injected = app_with(pg.config())

    @app.get("/")
    async def export(session: injected) -> StreamingResponse:
        found = await session.stream_scalars(ROWS)

        async def rows() -> AsyncIterator[str]:
            async for v in found:
                yield f"{v},"

        return StreamingResponse(rows())

    fill(pg, 100)
    async with calling(app, raises=True) as client:
        with pytest.raises(OpenCursorError):
            await client.get("/")


def around(app: FastAPI) -> Starlette:
    """A Starlette app that has this one mounted, and a gate of its own."""
    outer = Starlette(routes=[Mount("/", app)])
    Transept(SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", bind_key="outer"), outer)
    return outer


@pytest.mark.parametrize("mounted", [False, True])
@pytest.mark.parametrize("spec", ["2.3", "2.4"])
@pytest.mark.parametrize("kind", ["lines", "events", "raw"])
async def test_an_endpoint_that_yields_reads_from_a_cursor_and_gives_the_connection_back(
    pg: Postgres, kind: str, spec: str, mounted: bool
) -> None:
    config = pg.config()
    app, _, injected = app_with(config)

    async def rows(session: injected) -> AsyncIterable[int]:
        async for v in await session.stream_scalars(ROWS, execution_options={"yield_per": 2}):
            yield v

    async def raw(session: injected) -> AsyncIterable[str]:
        async for v in await session.stream_scalars(ROWS, execution_options={"yield_per": 2}):
            yield f"{v},"

    router = APIRouter()
    if kind == "raw":
        router.get("/", response_class=StreamingResponse)(raw)
    elif kind == "lines":
        router.get("/")(rows)
    else:
        router.get("/", response_class=EventSourceResponse)(rows)
    app.include_router(router)
    fill(pg, 30)
    told: list[Any] = []
    await http(app if not mounted else around(app), told, spec=spec)
    shape = {"lines": "{}\n", "events": "data: {}\n\n", "raw": "{},"}[kind]
    assert body(told).decode() == "".join(shape.format(v) for v in range(1, 31))
    assert told[-1].get("more_body", False) is False
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


@pytest.mark.parametrize("events", [False, True])
async def test_a_plain_generator_endpoint_reads_with_a_blocking_session(file: File, events: bool) -> None:
    config = file.sync_config()
    app, _, injected = app_with(config)

    def rows(session: injected) -> Iterable[int]:
        for _ in range(3):
            yield session.scalar(COUNT)

    app.get("/", **({"response_class": EventSourceResponse} if events else {}))(rows)
    assert (await get(app)).text == ("data: 0\n\n" if events else "0\n") * 3
    assert out_of_pool(config) == 0


@pytest.mark.parametrize("events", [False, True])
async def test_what_a_yielding_endpoint_writes_is_kept_before_its_body_is_complete(pg: Postgres, events: bool) -> None:
    app, _, injected = app_with(pg.config())

    async def write(session: injected) -> AsyncIterable[int]:
        for v in (1, 2, 3):
            await session.execute(insert(v))
            yield v

    app.post("/", **({"response_class": EventSourceResponse} if events else {}))(write)
    seen: list[Any] = []

    class Told(list[Any]):
        def append(self, message: Any) -> None:
            seen.append((message.get("more_body"), pg.held()))

    await http(app, Told(), method="POST")
    assert seen[-1] == (False, [1, 2, 3])
    assert pg.in_transaction() == 0


async def test_a_block_in_an_event_stream_is_kept_as_a_whole_or_not_at_all(pg: Postgres) -> None:
    """FastAPI runs the generator ahead of the messages, so the gate settles while it is inside a block."""
    app, _, injected = app_with(pg.config())

    @app.post("/", response_class=EventSourceResponse)
    async def write(session: injected) -> AsyncIterable[int]:
        for v in (10, 20, 30):
            async with unit_of_work():
                for one in (v, v + 1, v + 2):
                    await session.execute(insert(one))
                    await asyncio.sleep(0.01)
                if v == 30:
                    raise ValueError
            yield v

    told: list[Any] = []
    with pytest.raises(ExceptionGroup):
        await http(app, told, method="POST")
    assert told[-1]["more_body"] is True
    assert pg.held() == [10, 11, 12, 20, 21, 22]
    assert pg.in_transaction() == 0


async def test_an_event_stream_over_a_manual_database_keeps_what_it_commits(pg: Postgres) -> None:
    app, _, injected = app_with(pg.config(commit_mode="manual"))

    @app.post("/", response_class=EventSourceResponse)
    async def write(session: injected) -> AsyncIterable[int]:
        for v in range(1, 6):
            await session.execute(insert(v))
            await asyncio.sleep(0.01)
            await session.commit()
            yield v

    await http(app, [], method="POST", spec="2.3")
    assert pg.held() == [1, 2, 3, 4, 5]
    assert pg.in_transaction() == 0


async def test_a_client_that_leaves_an_event_stream_leaves_nothing_behind(pg: Postgres) -> None:
    config = pg.config()
    app, _, injected = app_with(config)
    gone = asyncio.Event()

    @app.get("/", response_class=EventSourceResponse)
    async def follow(session: injected) -> AsyncIterable[int]:
        while True:
            yield await session.scalar(COUNT)
            gone.set()
            await asyncio.sleep(0.01)

    async with asyncio.timeout(10):
        await http(app, [], gone=gone, spec="2.3")
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


async def test_100_event_streams_share_a_pool_of_5(pg: Postgres) -> None:
    config = pg.config(pool_size=5)
    app, _, injected = app_with(config)
    everybody = asyncio.Event()
    here = 0

    @app.get("/", response_class=EventSourceResponse)
    async def follow(session: injected) -> AsyncIterable[int]:
        nonlocal here
        yield await session.scalar(COUNT)
        here += 1
        if here == 100:
            everybody.set()
        await everybody.wait()
        yield await session.scalar(COUNT)

    listening: list[list[Any]] = [[] for _ in range(100)]
    async with asyncio.timeout(30):
        await asyncio.gather(*(http(app, told) for told in listening))
    assert {body(told) for told in listening} == {b"data: 0\n\n" * 2}
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


async def test_a_plain_streaming_body_works_in_threads(file: File) -> None:
    config = file.sync_config()
    app, _, injected = app_with(config)

    @app.get("/")
    def export(session: injected) -> StreamingResponse:
        def rows() -> Iterator[str]:
            for v in session.scalars(ROWS):
                yield f"{v},"

        return StreamingResponse(rows())

    @app.post("/", status_code=201)
    def fill_in(session: injected) -> None:
        for v in range(5):
            session.execute(insert(v))

    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
        assert (await client.get("/")).text == "0,1,2,3,4,"
    assert out_of_pool(config) == 0
