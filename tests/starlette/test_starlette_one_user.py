"""A session has one user at a time, and a blocking one never stops the event loop for a connection."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from held import COUNT, File, Postgres, calling, get, insert, out_of_pool, post
from sqlalchemy import ForeignKey, select, text
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transept import BlockingCallWarning, ConcurrentUseError, OutsideScope, PoolBusyOnLoop, after_commit
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship(back_populates="parent")


class Child(Base):
    __tablename__ = "child"
    p: Mapped[int] = mapped_column(ForeignKey("parent.id"), primary_key=True)
    parent: Mapped[Parent] = relationship(back_populates="children")


def app_with(config: Any, endpoint: Any) -> Starlette:
    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])
    Transept(config, app)
    return app


async def raising(app: Any, method: str = "POST") -> Any:
    async with calling(app, raises=True) as client:
        return await client.request(method, "/")


def clean(pg: Postgres, config: Any) -> None:
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


# One user at a time


async def test_gather_on_one_session_is_an_error_that_names_both_and_leaves_nothing(pg: Postgres) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        one = asyncio.create_task(session.execute(insert(1)), name="one")
        two = asyncio.create_task(session.execute(insert(2)), name="two")
        await asyncio.gather(one, two)
        return Response(status_code=201)

    app = app_with(config, endpoint)
    with pytest.raises(ConcurrentUseError) as caught:
        await raising(app)
    assert (caught.value.user, caught.value.holder) == ("task 'two'", "task 'one'")
    assert pg.held() == []
    clean(pg, config)


async def test_gather_that_returns_its_errors_harms_no_connection(pg: Postgres) -> None:
    config = pg.config(pool_size=2)

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        work = (session.execute(insert(number)) for number in range(5))
        results = await asyncio.gather(*work, return_exceptions=True)
        refused = [one for one in results if isinstance(one, ConcurrentUseError)]
        return JSONResponse(len(refused), 201)

    app = app_with(config, endpoint)
    for _ in range(5):
        assert (await raising(app)).json() == 4
        clean(pg, config)
    assert pg.held() == [0] * 5


@pytest.mark.parametrize("kind", ["scalar", "get", "commit", "flush", "begin_nested", "refresh", "run_sync", "stream"])
async def test_no_way_into_a_session_in_use_is_open(pg: Postgres, kind: str) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        parent = Parent(id=7)
        session.add(parent)
        await session.flush()
        session.add(Parent(id=8))
        busy = asyncio.create_task(session.execute(text("SELECT pg_sleep(0.2)")))
        await asyncio.sleep(0.05)
        ways = {
            "scalar": lambda: session.scalar(COUNT),
            "get": lambda: session.get(Parent, 1),
            "commit": session.commit,
            "flush": session.flush,
            "begin_nested": session.begin_nested,
            "refresh": lambda: session.refresh(parent),
            "run_sync": lambda: session.run_sync(lambda inner: inner.scalar(COUNT)),
            "stream": lambda: session.stream(COUNT),
        }
        try:
            with pytest.raises(ConcurrentUseError):
                await ways[kind]()
        finally:
            await busy
        return Response(status_code=201)

    assert (await raising(app_with(config, endpoint))).status_code == 201
    clean(pg, config)
    assert pg.look.execute("SELECT count(*) FROM parent").fetchone() == (2,)


async def test_a_lazy_load_takes_the_turn_as_well(pg: Postgres) -> None:
    config = pg.config()
    pg.look.execute("INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1), (2)")

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        one, two = (await session.scalars(select(Parent).order_by(Parent.id))).all()
        assert len(await one.awaitable_attrs.children) == 1
        busy = asyncio.create_task(session.execute(text("SELECT pg_sleep(0.2)")))
        await asyncio.sleep(0.05)
        with pytest.raises(ConcurrentUseError):
            await two.awaitable_attrs.children
        await busy
        assert len(await two.awaitable_attrs.children) == 1
        return Response()

    assert (await raising(app_with(config, endpoint))).status_code == 200
    clean(pg, config)


async def test_run_sync_in_two_tasks_is_refused_and_nested_calls_in_one_are_fine(pg: Postgres) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session

        def several(inner: Any) -> int:
            inner.add(Parent(id=1))
            inner.flush()
            return int(inner.scalar(text("SELECT count(*) FROM parent")))

        assert await session.run_sync(several) == 1
        results = await asyncio.gather(
            *(session.run_sync(lambda inner: inner.execute(text("SELECT pg_sleep(0.1)"))) for _ in range(2)),
            return_exceptions=True,
        )
        assert [isinstance(one, ConcurrentUseError) for one in results] == [False, True]
        return Response(status_code=201)

    assert (await raising(app_with(config, endpoint))).status_code == 201
    clean(pg, config)


async def test_a_stream_is_read_in_one_task_while_another_one_asks(pg: Postgres) -> None:
    config = pg.config()
    outcomes: list[str] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        result = await session.stream(
            text("SELECT pg_sleep(0.002), v FROM generate_series(1, 100) AS v"), execution_options={"yield_per": 5}
        )

        async def read() -> int:
            return len([row async for row in result])

        async def ask() -> None:
            for _ in range(50):
                try:
                    await session.scalar(COUNT)
                    outcomes.append("asked")
                except ConcurrentUseError:
                    outcomes.append("refused")
                await asyncio.sleep(0.001)

        counted, _ = await asyncio.gather(read(), ask(), return_exceptions=True)
        return JSONResponse(counted if isinstance(counted, int) else type(counted).__name__)

    body = (await raising(app_with(config, endpoint), "GET")).json()
    assert body in (100, "ConcurrentUseError")
    assert outcomes
    clean(pg, config)


async def test_one_task_after_the_other_is_fine(pg: Postgres) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        for number in range(5):
            await asyncio.create_task(request.state.db_session.execute(insert(number)))
        return Response(status_code=201)

    assert (await raising(app_with(config, endpoint))).status_code == 201
    assert pg.held() == list(range(5))
    clean(pg, config)


async def test_the_app_that_swallows_a_refusal_goes_on(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        await asyncio.gather(*(session.scalar(COUNT) for _ in range(3)), return_exceptions=True)
        await session.execute(insert(2))
        return Response(status_code=201)

    assert (await raising(app_with(file.config(), endpoint))).status_code == 201
    assert file.held() == [1, 2]


async def test_two_threads_in_one_session_are_told_apart(pg: Postgres) -> None:
    config = pg.sync_config()
    caught: list[ConcurrentUseError] = []

    def endpoint(request: Request) -> Response:
        session = request.state.db_session
        session.execute(insert(1))

        def intrude() -> None:
            time.sleep(0.1)
            try:
                session.execute(insert(2))
            except ConcurrentUseError as error:
                caught.append(error)

        thread = threading.Thread(target=intrude, name="intruder")
        thread.start()
        session.execute(text("SELECT pg_sleep(0.3)"))
        thread.join()
        return Response(status_code=201)

    assert (await raising(app_with(config, endpoint))).status_code == 201
    assert caught[0].user == "thread 'intruder'"
    assert pg.held() == [1]
    clean(pg, config)


async def test_two_requests_never_share_a_session(pg: Postgres) -> None:
    config = pg.config()
    seen: set[int] = set()
    keep: list[Any] = []

    async def endpoint(request: Request) -> Response:
        keep.append(request.state.db_session)
        seen.add(id(request.state.db_session))
        await request.state.db_session.execute(text("SELECT pg_sleep(0.05)"))
        return Response()

    app = app_with(config, endpoint)
    async with calling(app) as client:
        await asyncio.gather(*(client.get("/") for _ in range(20)))
    assert len(seen) == 20
    clean(pg, config)


@pytest.mark.parametrize("use", ["execute", "add_and_flush", "commit", "lazy"])
async def test_a_session_whose_request_is_over_refuses_every_use(pg: Postgres, use: str) -> None:
    config = pg.config()
    pg.look.execute("INSERT INTO parent VALUES (1)")
    kept: list[Any] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        kept.extend([session, await session.get(Parent, 1)])
        return Response()

    assert (await get(app_with(config, endpoint))).status_code == 200
    session, parent = kept
    await session.close()
    await session.rollback()
    if use == "lazy":
        with pytest.raises(Exception):  # noqa: B017, PT011 - detached from its session
            await parent.awaitable_attrs.children
    else:
        with pytest.raises(OutsideScope, match="GET /"):
            if use == "execute":
                await session.execute(insert(1))
            elif use == "commit":
                await session.commit()
            else:
                session.add(Parent(id=5))
                await session.flush()
    clean(pg, config)


async def test_async_with_around_the_requests_session_ends_nothing_too_early(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        async with request.state.db_session as session:
            await session.execute(insert(1))
        return Response(status_code=201)

    status = (await post(app_with(file.config(), endpoint))).status_code
    # The block closes the session, as the app asked: what it had not committed is gone.
    assert (status, file.held()) == (201, [])


async def test_async_with_begin_on_the_requests_session_is_the_apps_own_commit(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        async with request.state.db_session.begin():
            await request.state.db_session.execute(insert(1))
        await request.state.db_session.execute(insert(2))
        return Response(status_code=400)

    assert (await post(app_with(file.config(), endpoint))).status_code == 400
    assert file.held() == [1]


# Blocking sessions and the event loop


async def test_a_blocking_session_in_an_async_endpoint_works_and_warns_once_for_each_call_site(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        for number in (1, 2):
            request.state.db_session.execute(insert(number))
        request.state.db_session.scalar(COUNT)
        return Response(status_code=201)

    app = app_with(file.sync_config(), endpoint)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert (await post(app)).status_code == 201
    mine = [one for one in caught if issubclass(one.category, BlockingCallWarning)]
    assert len(mine) == 2
    assert {one.filename for one in mine} == {__file__}
    assert file.held() == [1, 1, 1, 2, 2, 2]


async def test_a_plain_endpoint_with_a_blocking_session_does_not_warn(file: File) -> None:
    def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert (await post(app_with(file.sync_config(), endpoint))).status_code == 201
    assert [one for one in caught if issubclass(one.category, BlockingCallWarning)] == []


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
@pytest.mark.parametrize("outcome", ["commit", "rollback"])
async def test_a_blocking_database_is_settled_off_the_loops_thread(file: File, outcome: str) -> None:
    from sqlalchemy import event

    config = file.sync_config()
    threads: list[Any] = []
    event.listen(config.get_engine(), outcome, lambda connection: threads.append(threading.current_thread()))

    async def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        after_commit(lambda: threads.append(threading.current_thread()))
        return Response(status_code=201 if outcome == "commit" else 400)

    await post(app_with(config, endpoint))
    assert threads
    assert threading.current_thread() not in threads


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
async def test_the_loop_runs_on_while_a_blocking_commit_takes_its_time(pg: Postgres) -> None:
    pg.slow_commit(0.3)
    config = pg.sync_config()
    turns = 0

    async def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    async def tick() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.create_task(tick())
    assert (await post(app_with(config, endpoint))).status_code == 201
    ticking.cancel()
    assert turns > 15
    clean(pg, config)


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
async def test_a_full_pool_on_the_loop_is_an_error_at_once(pg: Postgres) -> None:
    config = pg.sync_config(pool_size=2)
    go = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        await go.wait()
        return Response(status_code=201)

    app = app_with(config, endpoint)
    async with calling(app) as client:
        holders = [asyncio.create_task(client.post("/")) for _ in range(2)]
        await asyncio.sleep(0.3)
        began = time.monotonic()
        with pytest.raises(PoolBusyOnLoop, match="all 2 connections"):
            await raising(app)
        assert (await client.post("/")).status_code == 500
        assert time.monotonic() - began < 0.5
        go.set()
        assert [(await one).status_code for one in holders] == [201, 201]
        assert (await client.post("/")).status_code == 201
    assert pg.held() == [1, 1, 1]
    clean(pg, config)


async def test_a_full_pool_in_threads_is_waited_for(pg: Postgres) -> None:
    config = pg.sync_config(pool_size=2)

    def endpoint(request: Request) -> Response:
        request.state.db_session.execute(text("SELECT pg_sleep(0.05)"))
        request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    app = app_with(config, endpoint)
    async with calling(app) as client:
        answers = await asyncio.gather(*(client.post("/") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    clean(pg, config)


async def test_more_plain_endpoints_than_threads_do_not_stop_each_others_commits(pg: Postgres) -> None:
    config = pg.sync_config(pool_size=2)

    def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    app = app_with(config, endpoint)
    async with asyncio.timeout(20), calling(app) as client:
        answers = await asyncio.gather(*(client.post("/") for _ in range(100)))
    assert {answer.status_code for answer in answers} == {201}
    assert len(pg.held()) == 100
    clean(pg, config)


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
async def test_blocking_and_async_databases_end_together(pg: Postgres) -> None:
    one, two = pg.config(), pg.sync_config(bind_key="two")

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        request.state.two_session.execute(insert(2))
        return Response(status_code=int(request.query_params["status"]))

    async with calling(app_with([one, two], endpoint)) as client:
        assert (await client.post("/?status=400")).status_code == 400
        assert pg.held() == []
        assert (await client.post("/?status=201")).status_code == 201
    assert pg.held() == [1, 2]
    clean(pg, one)
    clean(pg, two)


async def test_sqlite_writers_wait_for_each_other(file: File) -> None:
    config = file.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        count = await session.scalar(COUNT)
        await asyncio.sleep(0.005)
        await session.execute(insert(count))
        return Response(status_code=201)

    app = app_with(config, endpoint)
    async with calling(app, raises=True) as client:
        answers = await asyncio.gather(*(client.post("/") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {201}
    assert file.held() == list(range(20))
    assert out_of_pool(config) == 0


async def test_a_hundred_streams_share_a_pool_of_five(pg: Postgres) -> None:
    config = pg.config(pool_size=5)

    async def endpoint(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield f"data: {await request.state.db_session.scalar(COUNT)}\n\n".encode()
                await asyncio.sleep(0.1)

        return StreamingResponse(body(), media_type="text/event-stream")

    app = app_with(config, endpoint)
    async with asyncio.timeout(10), calling(app, raises=True) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(100)))
    assert {answer.text for answer in answers} == {"data: 0\n\n" * 3}
    clean(pg, config)
    with suppress(AttributeError):
        assert config.get_engine().pool.size() == 5
