"""What comes after the start of a Litestar response, or in its place: streams, background tasks, WebSockets, mounts."""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, eventually, get, http, insert, out_of_pool, post, websocket
from litestar import Litestar, Request, Response, WebSocket, asgi
from litestar import get as at_get
from litestar import post as at_post
from litestar import websocket as at_websocket
from litestar.background_tasks import BackgroundTask, BackgroundTasks
from litestar.config.compression import CompressionConfig
from litestar.handlers import websocket_listener, websocket_stream
from litestar.response import File as FileResponse
from litestar.response import ServerSentEvent, Stream
from litestar_app import Noting, app_with, clean, config_of, sync_config_of
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from transept import OutsideScope, after_commit, current_unit, db_session, in_new_unit, sync_db_session, unit_of_work
from transept.extensions.litestar import Transept

pytestmark = pytest.mark.anyio

SLEEP = text("SELECT pg_sleep(1.5)")
covered = pytest.mark.parametrize("options", [{}, {"middleware": [lambda app: app]}], ids=["bare", "covered"])
GZIP = {"compression_config": CompressionConfig("gzip", minimum_size=1)}


def conflict(request: Request, error: Exception) -> Response:
    return Response({"handled": type(error).__name__}, status_code=409)


# Streams


@covered
async def test_a_stream_that_does_not_read_holds_no_connection(pg: Postgres, options: Any) -> None:
    config, seen = config_of(pg, pool_size=1), []

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        await db_session.execute(insert(1))

        async def body() -> AsyncIterator[bytes]:
            for _ in range(3):
                seen.append((out_of_pool(config), pg.in_transaction(), pg.held()))
                yield b"x"

        return Stream(body())

    app, _ = app_with(config, stream, **options)
    response = await post(app)
    assert (response.status_code, response.text) == (201, "xxx")
    assert seen == [(0, 0, [1])] * 3


@covered
@pytest.mark.parametrize("accepts", ["identity", "gzip"])
async def test_a_cursor_opened_in_the_generator_is_read_in_one_transaction(
    pg: Postgres, accepts: str, options: Any
) -> None:
    config, seen = config_of(pg, pool_size=1), []

    @at_get("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            async for row in await db_session.stream(text("SELECT generate_series(1, 4), txid_current()")):
                seen.append(row[1])
                yield b"x"
            yield b"y"
            seen.append(pg.in_transaction())

        return Stream(body())

    app, _ = app_with(config, stream, **options, **GZIP)
    response = await get(app, headers={"accept-encoding": accepts})
    assert (response.status_code, response.text) == (200, "xxxxy")
    assert (len(set(seen[:4])), seen[4]) == (1, 0)
    await clean(pg, config)


@covered
async def test_a_cursor_opened_before_the_stream_is_an_error_before_the_first_byte(pg: Postgres, options: Any) -> None:
    config = config_of(pg)

    @at_get("/")
    async def stream(db_session: AsyncSession) -> Stream:
        result = await db_session.stream(text("SELECT generate_series(1, 9)"))

        async def body() -> AsyncIterator[bytes]:
            async for _ in result:
                yield b"x"

        return Stream(body())

    heard: list[Any] = []

    async def hook(error: Exception, scope: Any) -> None:
        heard.append(type(error).__name__)

    app, _ = app_with(config, stream, after_exception=[hook], **options)
    response = await get(app)
    assert (response.status_code, heard) == (500, ["OpenCursorError"])
    await clean(pg, config)


@covered
@pytest.mark.parametrize("accepts", ["identity", "gzip"])
async def test_a_stream_writes_chunk_by_chunk_and_keeps_what_was_before_an_error(
    file: File, accepts: str, options: Any
) -> None:
    config = config_of(file)

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            for number in (1, 2):
                await db_session.execute(insert(number))
                yield b"x"
                assert file.held()[-1] == number
            await db_session.execute(insert(3))
            raise KeyError

        return Stream(body())

    app, _ = app_with(config, stream, **options, **GZIP)
    told: list[Any] = []
    with pytest.raises(Exception, match=r"."):
        await http(with_header(app, "accept-encoding", accepts), told, method="POST")
    assert [message.get("more_body") for message in told] == [None, True, True]
    assert (file.held(), out_of_pool(config)) == ([1, 2], 0)


def with_header(app: Any, name: str, value: str) -> Any:
    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "headers": [*scope["headers"], (name.encode(), value.encode())]}, receive, send)

    return call


@covered
async def test_a_stream_whose_last_commit_fails_is_cut_off(pg: Postgres, options: Any) -> None:
    config = config_of(pg)

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            await db_session.execute(insert(1))
            yield b"x"
            await db_session.execute(insert(2))
            await db_session.execute(VIOLATION)

        return Stream(body())

    for settings in (options, {**options, **GZIP}):
        app, _ = app_with(config, stream, **settings)
        told: list[Any] = []
        with pytest.raises(Exception, match=r"."):
            await http(with_header(app, "accept-encoding", "gzip"), told, method="POST")
        assert all(message.get("more_body", True) for message in told)
        await clean(pg, config)
    assert pg.held() == [1, 1]


async def test_a_stream_whose_last_commit_failed_is_not_in_the_cache(pg: Postgres) -> None:
    config, calls = config_of(pg), []

    @at_get("/", cache=60)
    async def stream(db_session: AsyncSession) -> Stream:
        calls.append(1)

        async def body() -> AsyncIterator[bytes]:
            await db_session.execute(insert(len(calls)))
            yield b"stored"
            if len(calls) == 1:
                await db_session.execute(VIOLATION)

        return Stream(body())

    app, _ = app_with(config, stream)
    with pytest.raises(Exception, match=r"."):
        await http(app, [])
    response = await get(app)
    assert (response.status_code, response.text, len(calls)) == (200, "stored", 2)
    await clean(pg, config)


@covered
@pytest.mark.parametrize("accepts", ["identity", "gzip"])
async def test_a_stream_in_manual_mode_keeps_what_the_app_commits(file: File, accepts: str, options: Any) -> None:
    config = config_of(file, before_send_handler=None)

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            await db_session.execute(insert(1))
            yield b"x"
            await db_session.commit()
            yield b"y"
            await db_session.execute(insert(2))

        return Stream(body())

    app, _ = app_with(config, stream, **options, **GZIP)
    response = await post(app, headers={"accept-encoding": accepts})
    assert (response.status_code, response.text) == (201, "xy")
    assert (file.held(), out_of_pool(config)) == ([1], 0)


@covered
@pytest.mark.parametrize("accepts", ["identity", "gzip"])
async def test_a_block_in_a_stream_is_kept_as_a_whole(file: File, accepts: str, options: Any) -> None:
    config, seen = config_of(file), []

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            async with unit_of_work():
                await db_session.execute(insert(1))
                yield b"x"
                seen.append(file.held())
                await db_session.execute(insert(2))
            yield b"y"
            seen.append(file.held())

        return Stream(body())

    app, _ = app_with(config, stream, **options, **GZIP)
    response = await post(app, headers={"accept-encoding": accepts})
    assert (response.status_code, response.text, seen) == (201, "xy", [[], [1, 2]])
    assert (file.held(), out_of_pool(config)) == ([1, 2], 0)


async def test_the_first_chunk_of_a_compressed_stream_may_fail_and_is_answered(pg: Postgres) -> None:
    """Compression holds the start back until there is a chunk, so nothing has been sent."""
    config = config_of(pg)

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            await db_session.execute(VIOLATION)
            yield b"x"

        return Stream(body())

    app, _ = app_with(config, stream, exception_handlers={IntegrityError: conflict}, **GZIP)
    async with calling(app, raises=True) as client:
        response = await client.post("/")
    assert (response.status_code, response.json()) == (409, {"handled": "IntegrityError"})
    await clean(pg, config)


@covered
async def test_a_plain_generator_streams_with_a_blocking_session(file: File, options: Any) -> None:
    config = sync_config_of(file)

    @at_post("/", sync_to_thread=True)
    def stream(db_session: Session) -> Stream:
        db_session.execute(insert(1))

        def body() -> Iterator[bytes]:
            for number in (2, 3):
                assert threading.current_thread() is not threading.main_thread()
                assert sync_db_session() is db_session
                db_session.execute(insert(number))
                yield str(db_session.scalar(COUNT)).encode()

        return Stream(body())

    app, _ = app_with(config, stream, **options)
    assert (await post(app)).text == "23"
    assert (file.held(), out_of_pool(config)) == ([1, 2, 3], 0)


@covered
async def test_the_context_api_works_in_a_stream(pg: Postgres, options: Any) -> None:
    config, ran = config_of(pg), []

    @at_post("/")
    async def stream() -> Stream:
        async def body() -> AsyncIterator[bytes]:
            for number in (1, 2):
                session = await db_session()
                await session.execute(insert(number))
                after_commit(lambda number=number: ran.append((number, pg.held())))
                yield b"x"

        return Stream(body())

    app, _ = app_with(config, stream, **options)
    assert (await post(app)).text == "xx"
    assert (ran, pg.held()) == ([(1, [1]), (2, [1, 2])], [1, 2])
    await clean(pg, config)


@covered
@pytest.mark.parametrize("colour", ["async", "plain"])
async def test_server_sent_events_are_committed_before_they_are_told(pg: Postgres, colour: str, options: Any) -> None:
    if colour == "async":
        config = config_of(pg)

        @at_get("/")
        async def events(db_session: AsyncSession) -> ServerSentEvent:
            async def body() -> AsyncIterator[Any]:
                for number in (1, 2):
                    await db_session.execute(insert(number))
                    yield {"data": str(number), "event": "stored"}

            return ServerSentEvent(body())

    else:
        config = sync_config_of(pg)

        @at_get("/", sync_to_thread=True)
        def events(db_session: Session) -> ServerSentEvent:
            def body() -> Iterator[Any]:
                for number in (1, 2):
                    db_session.execute(insert(number))
                    yield {"data": str(number), "event": "stored"}

            return ServerSentEvent(body())

    app, _ = app_with(config, events, **options)
    kept: list[Any] = []
    whole = asyncio.Event()  # servers say so, and Litestar waits for it

    class Told(list[Any]):
        def append(self, message: Any) -> None:
            kept.append((message.get("status") or message["body"].count(b"stored"), pg.held()))
            if not message.get("more_body", True):
                whole.set()

    await http(app, Told(), gone=whole)
    assert [one for one in kept if one[0] == 1] == [(1, [1]), (1, [1, 2])]
    await clean(pg, config)


async def test_a_file_after_a_write_is_sent_after_its_commit(pg: Postgres, tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("hello" * 100_000)
    config = config_of(pg)

    @at_post("/")
    async def write(request: Request, db_session: AsyncSession) -> FileResponse:
        await db_session.execute(insert(1))
        if request.query_params:
            await db_session.execute(VIOLATION)
        return FileResponse(page)

    app, _ = app_with(config, write)
    async with calling(app, raises=True) as client:
        assert (await client.post("/?late=1")).status_code == 500
        assert pg.held() == []
        assert len((await client.post("/")).content) == 500_000
    assert pg.held() == [1]
    await clean(pg, config)


# A client that leaves, a request that is cancelled


@covered
@pytest.mark.parametrize("accepts", ["identity", "gzip"])
async def test_a_client_that_leaves_half_way_keeps_what_was_settled_and_background_tasks_run(
    file: File, accepts: str, options: Any
) -> None:
    config, gone = config_of(file), asyncio.Event()

    async def later() -> None:
        await (await db_session()).execute(insert(9))

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            await db_session.execute(insert(1))
            yield b"first"
            await db_session.execute(insert(2))
            gone.set()
            await asyncio.sleep(5)
            yield b"second"

        return Stream(body(), background=BackgroundTask(later))

    app, _ = app_with(config, stream, **options, **GZIP)
    async with asyncio.timeout(3):
        await http(with_header(app, "accept-encoding", accepts), [], method="POST", gone=gone)
    assert (file.held(), out_of_pool(config)) == ([1, 9], 0)


@covered
async def test_a_handler_that_was_told_that_the_client_has_left_keeps_nothing(file: File, options: Any) -> None:
    gone = asyncio.Event()
    gone.set()

    @at_post("/")
    async def write(request: Request, db_session: AsyncSession) -> str:
        await request.body()
        await db_session.execute(insert(1))
        assert (await request.receive())["type"] == "http.disconnect"
        return "ok"

    config = config_of(file)
    app, _ = app_with(config, write, **options)
    await http(app, [], method="POST", gone=gone)
    assert (file.held(), out_of_pool(config)) == ([], 0)


class Ready:
    """Set by the app, in whatever thread, when it has come to where it is to be cancelled."""

    def __init__(self) -> None:
        self.loop, self.event = asyncio.get_running_loop(), asyncio.Event()

    def set(self) -> None:
        self.loop.call_soon_threadsafe(self.event.set)

    async def then(self, act: Any) -> None:
        await self.event.wait()
        await asyncio.sleep(0.15)
        act()


async def cancel(call: Any, ready: Ready) -> None:
    task = asyncio.create_task(call)
    await ready.then(task.cancel)
    await asyncio.wait([task])
    assert task.cancelled()


async def cancel_twice(call: Any, ready: Ready) -> None:
    task = asyncio.create_task(call)
    await ready.then(task.cancel)
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def time_out(call: Any, ready: Ready) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            watch = asyncio.create_task(ready.then(lambda: limit.reschedule(ready.loop.time())))
            await call
    assert watch.done()


async def cancel_scope(call: Any, ready: Ready) -> None:
    with anyio.CancelScope() as scope:
        watch = asyncio.create_task(ready.then(scope.cancel))
        await call
    assert watch.done()
    assert scope.cancelled_caught


ways = pytest.mark.parametrize("way", [cancel, cancel_twice, time_out, cancel_scope])


@ways
@covered
async def test_cancelled_while_a_statement_runs_keeps_nothing(pg: Postgres, way: Any, options: Any) -> None:
    config, ready = config_of(pg), Ready()

    @at_post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        ready.set()
        await db_session.execute(SLEEP)

    app, _ = app_with(config, write, **options)
    told: list[Any] = []
    await way(http(app, told, method="POST"), ready)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [])


@ways
@covered
async def test_cancelled_while_commit_runs_is_kept_and_not_told(pg: Postgres, way: Any, options: Any) -> None:
    pg.slow_commit(0.6)
    config, ran, ready = config_of(pg), [], Ready()

    @at_post("/")
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        after_commit(lambda: ran.append("kept"))
        ready.set()
        return Response("ok", background=BackgroundTask(ran.append, "background"))

    app, _ = app_with(config, write, **options)
    told: list[Any] = []
    await way(http(app, told, method="POST"), ready)
    await clean(pg, config)
    assert (told, pg.held(), ran) == ([], [1], ["kept"])


@ways
@covered
async def test_a_blocking_commit_is_kept_when_its_request_is_cancelled(pg: Postgres, way: Any, options: Any) -> None:
    pg.slow_commit(0.6)
    config, ready = sync_config_of(pg), Ready()

    @at_post("/", sync_to_thread=True)
    def write(db_session: Session) -> None:
        db_session.execute(insert(1))
        ready.set()

    app, _ = app_with(config, write, **options)
    told: list[Any] = []
    await way(http(app, told, method="POST"), ready)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [1])


@ways
@covered
async def test_cancelled_in_a_stream_keeps_what_was_settled(pg: Postgres, way: Any, options: Any) -> None:
    config, ready = config_of(pg), Ready()

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            await db_session.execute(insert(1))
            yield b"first"
            await db_session.execute(insert(2))
            ready.set()
            async for _ in await db_session.stream(text("SELECT pg_sleep(0.05) FROM generate_series(1, 20)")):
                yield b"more"

        return Stream(body())

    app, _ = app_with(config, stream, **options)
    told: list[Any] = []
    await way(http(app, told, method="POST"), ready)
    await clean(pg, config)
    assert pg.held() == [1]
    assert all(message.get("more_body", True) for message in told)


@ways
async def test_cancelled_in_a_background_task_keeps_the_request_and_not_the_task(pg: Postgres, way: Any) -> None:
    config, ready = config_of(pg), Ready()

    async def later() -> None:
        session = await db_session()
        await session.execute(insert(2))
        ready.set()
        await session.execute(SLEEP)

    @at_post("/")
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        return Response("ok", background=BackgroundTask(later))

    app, _ = app_with(config, write)
    told: list[Any] = []
    await way(http(app, told, method="POST"), ready)
    await clean(pg, config)
    assert ([message.get("status") for message in told], pg.held()) == ([201, None], [1])


async def test_a_time_out_inside_the_handler_is_answered_and_keeps_nothing(pg: Postgres) -> None:
    config = config_of(pg)

    @at_post("/")
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        try:
            async with asyncio.timeout(0.2):
                await db_session.execute(SLEEP)
        except TimeoutError:
            return Response("late", status_code=504)
        return Response("ok")

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 504
    await clean(pg, config)
    assert pg.held() == []


# Background tasks


@covered
async def test_background_tasks_share_a_fresh_unit_after_the_response(file: File, options: Any) -> None:
    config, seen = config_of(file), []

    async def later(request: Request, number: int) -> None:
        session = db.get_session(request)
        assert session is await db_session()
        seen.append(session)
        await session.execute(insert(number))

    @at_post("/")
    async def write(request: Request, db_session: AsyncSession) -> Response[str]:
        seen.append(db_session)
        await db_session.execute(insert(1))
        tasks = BackgroundTasks([BackgroundTask(later, request, 2), BackgroundTask(later, request, 3)])
        return Response("ok", background=tasks)

    app, db = app_with(config, write, **options)
    assert (await post(app)).status_code == 201
    assert seen[0] is not seen[1]
    assert seen[1] is seen[2]
    assert (file.held(), out_of_pool(config)) == ([1, 2, 3], 0)


@covered
@pytest.mark.parametrize("grouped", [True, False])
async def test_background_tasks_that_raise_are_rolled_back_together(file: File, grouped: bool, options: Any) -> None:
    config = config_of(file)

    async def later(number: int) -> None:
        if number == 3:
            await asyncio.sleep(0.05)
            raise KeyError
        await (await db_session()).execute(insert(number))

    @at_post("/")
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        tasks = [BackgroundTask(later, 2), BackgroundTask(later, 3)]
        return Response("ok", background=BackgroundTasks(tasks, run_in_task_group=grouped))

    app, _ = app_with(config, write, **options)
    assert (await post(app)).status_code == 201
    assert (file.held(), out_of_pool(config)) == ([1], 0)


async def test_background_tasks_in_a_group_have_units_of_their_own(pg: Postgres) -> None:
    config = config_of(pg)

    async def later(number: int) -> None:
        session = await db_session(config)
        await session.execute(insert(number))
        await session.execute(text("SELECT pg_sleep(0.05)"))

    @at_post("/")
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        tasks = [BackgroundTask(in_new_unit(later), number) for number in (2, 3, 4)]
        return Response("no", status_code=409, background=BackgroundTasks(tasks, run_in_task_group=True))

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 409
    await clean(pg, config)
    assert pg.held() == [2, 3, 4]


async def test_a_background_task_that_sleeps_holds_no_connection(pg: Postgres) -> None:
    config, seen = config_of(pg, pool_size=1), []

    async def later() -> None:
        seen.append((out_of_pool(config), pg.in_transaction()))

    @at_post("/", background=BackgroundTask(later))
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        return "ok"

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 201
    assert seen == [(0, 0)]


async def test_a_plain_background_task_uses_a_blocking_session(file: File) -> None:
    config = sync_config_of(file)

    def later() -> None:
        sync_db_session().execute(insert(2))

    @at_post("/", sync_to_thread=True)
    def write(db_session: Session) -> Response[str]:
        db_session.execute(insert(1))
        return Response("ok", background=BackgroundTask(later))

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 201
    assert (file.held(), out_of_pool(config)) == ([1, 2], 0)


async def test_the_requests_session_in_a_background_task_is_outside_its_scope(file: File) -> None:
    config, errors = config_of(file), []

    async def later(session: AsyncSession) -> None:
        try:
            await session.execute(insert(2))
        except OutsideScope as error:
            errors.append(str(error))
            raise

    @at_post("/")
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        return Response("ok", background=BackgroundTask(later, db_session))

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 201
    assert file.held() == [1]
    assert "is over" in errors[0]


async def test_a_background_task_whose_commit_fails_raises_to_the_server(pg: Postgres) -> None:
    config = config_of(pg)

    async def later() -> None:
        session = await db_session()
        await session.execute(insert(2))
        await session.execute(VIOLATION)

    @at_post("/")
    async def write() -> Response[str]:
        return Response("ok", background=BackgroundTask(later))

    app, _ = app_with(config, write)
    async with calling(app, raises=True) as client:
        with pytest.raises(IntegrityError):
            await client.post("/")
    await clean(pg, config)
    assert pg.held() == []


# WebSockets


def types(told: list[Any]) -> list[str]:
    return [message["type"].rpartition(".")[2] for message in told]


def texts(told: list[Any]) -> list[Any]:
    return [json.loads(message["text"]) for message in told if message["type"] == "websocket.send"]


async def test_a_websocket_handler_has_a_unit_for_each_message(pg: Postgres) -> None:
    config, seen = config_of(pg, pool_size=1), []

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        async for number in socket.iter_json():
            seen.append((out_of_pool(config), pg.in_transaction(), pg.held()))
            await db_session.execute(insert(number))
            await socket.send_json(number)
            assert pg.held()[-1] == number

    app, _ = app_with(config, socket)
    assert texts(await websocket(app, 1, 2, 3)) == [1, 2, 3]
    assert seen == [(0, 0, []), (0, 0, [1]), (0, 0, [1, 2])]
    await clean(pg, config)
    assert pg.held() == [1, 2, 3]


@covered
async def test_a_websocket_handler_that_raises_rolls_back_although_litestar_answers(pg: Postgres, options: Any) -> None:
    config = config_of(pg)

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        async for number in socket.iter_json():
            await db_session.execute(insert(number))
            if number == 2:
                raise KeyError

    app, _ = app_with(config, socket, **options)
    assert types(await websocket(app, 1, 2)) == ["accept", "close"]
    await clean(pg, config)
    assert pg.held() == [1]


@covered
async def test_a_dependency_or_guard_of_a_websocket_that_raises_keeps_nothing(pg: Postgres, options: Any) -> None:
    config = config_of(pg)

    async def guard(connection: Any, handler: Any) -> None:
        await db.get_session(connection).execute(insert(1))
        raise KeyError

    @at_websocket("/", guards=[guard])
    async def socket(socket: WebSocket) -> None:
        raise AssertionError("not reached")

    app, db = app_with(config, socket, **options)
    assert types(await websocket(app)) == ["close"]
    await clean(pg, config)
    assert pg.held() == []


async def test_a_message_that_cannot_be_kept_is_not_acknowledged(pg: Postgres) -> None:
    config = config_of(pg)

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        async for number in socket.iter_json():
            await db_session.execute(insert(number))
            if number == 2:
                await db_session.execute(VIOLATION)
            await socket.send_json(number)

    app, _ = app_with(config, socket)
    told = await websocket(app, 1, 2)
    assert (types(told), texts(told)) == (["accept", "send", "close"], [1])
    assert told[-1]["code"] == 4500
    await clean(pg, config)
    assert pg.held() == [1]


async def test_a_socket_of_a_client_that_leaves_keeps_what_its_messages_wrote(pg: Postgres) -> None:
    config = config_of(pg)

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        while True:
            await db_session.execute(insert(await socket.receive_json()))

    app, _ = app_with(config, socket)
    await websocket(app, 1, 2)
    await clean(pg, config)
    assert pg.held() == [1, 2]


async def test_a_websocket_listener_has_a_unit_for_each_message(pg: Postgres) -> None:
    config, seen = config_of(pg, pool_size=1), []

    @websocket_listener("/")
    async def listen(data: Any, db_session: AsyncSession) -> int:
        seen.append((out_of_pool(config), pg.in_transaction(), pg.held()))
        await db_session.execute(insert(data))
        return int(await db_session.scalar(COUNT) or 0)

    app, _ = app_with(config, listen)
    assert texts(await websocket(app, 5, 6)) == [1, 2]
    assert seen == [(0, 0, []), (0, 0, [5])]
    await clean(pg, config)
    assert pg.held() == [5, 6]


@pytest.mark.parametrize("how", ["raises", "violates"])
async def test_a_websocket_listener_that_fails_keeps_the_messages_before(pg: Postgres, how: str) -> None:
    config = config_of(pg)

    @websocket_listener("/")
    async def listen(data: Any, db_session: AsyncSession) -> int:
        await db_session.execute(insert(data))
        if data == 2:
            if how == "raises":
                raise KeyError
            await db_session.execute(VIOLATION)
        return int(data)

    app, _ = app_with(config, listen)
    told = await websocket(app, 1, 2, 3)
    assert (types(told), texts(told)) == (["accept", "send", "close"], [1])
    await clean(pg, config)
    assert pg.held() == [1]


async def test_a_plain_websocket_listener_uses_a_blocking_session(file: File) -> None:
    config = sync_config_of(file)

    @websocket_listener("/")
    def listen(data: Any, db_session: Session) -> int:
        assert sync_db_session() is db_session
        db_session.execute(insert(data))
        return int(db_session.scalar(COUNT) or 0)

    app, _ = app_with(config, listen)
    assert texts(await websocket(app, 5, 6)) == [1, 2]
    assert (file.held(), out_of_pool(config)) == ([5, 6], 0)


class Client:
    """A client of a WebSocket that says things when it likes."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.told: list[Any] = []
        self.inbox.put_nowait({"type": "websocket.connect"})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})

    async def run(self) -> None:
        scope = {
            "type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "scheme": "ws",
            "root_path": "", "server": ("test", 80), "client": ("test", 1), "subprotocols": [], "http_version": "1.1",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
        }  # fmt: skip

        async def send(message: Any) -> None:
            self.told.append(message)

        await self.app(scope, self.inbox.get, send)


@pytest.mark.parametrize("listens", [True, False])
async def test_a_websocket_stream_commits_before_each_message(pg: Postgres, listens: bool) -> None:
    config, seen = config_of(pg, pool_size=1), []

    @websocket_stream("/", listen_for_disconnect=listens)
    async def feed(db_session: AsyncSession) -> AsyncGenerator[int, None]:
        for number in (1, 2, 3):
            await db_session.execute(insert(number))
            yield number
            seen.append((out_of_pool(config), pg.held()))

    app, _ = app_with(config, feed)
    client = Client(app)
    async with asyncio.timeout(5):
        await client.run()
    assert texts(client.told) == [1, 2, 3]
    assert seen == [(0, [1]), (0, [1, 2]), (0, [1, 2, 3])]
    await clean(pg, config)


async def test_a_websocket_stream_that_raises_keeps_what_it_has_sent(pg: Postgres) -> None:
    config = config_of(pg)

    @websocket_stream("/")
    async def feed(db_session: AsyncSession) -> AsyncGenerator[int, None]:
        for number in (1, 2):
            await db_session.execute(insert(number))
            if number == 2:
                raise KeyError
            yield number

    app, _ = app_with(config, feed)
    client = Client(app)
    async with asyncio.timeout(5):
        await client.run()
    assert (texts(client.told), types(client.told)[-1]) == ([1], "close")
    await clean(pg, config)
    assert pg.held() == [1]


async def test_a_websocket_stream_whose_client_leaves_keeps_nothing_of_the_message_that_it_cut_off(
    pg: Postgres,
) -> None:
    """The generator is cancelled between its two statements: half of what belongs together."""
    config = config_of(pg)

    @websocket_stream("/")
    async def feed(db_session: AsyncSession) -> AsyncGenerator[int, None]:
        await db_session.execute(insert(1))
        yield 1
        await db_session.execute(insert(2))
        client.leave()
        await asyncio.sleep(5)
        await db_session.execute(insert(3))
        yield 2

    app, _ = app_with(config, feed)
    client = Client(app)
    async with asyncio.timeout(3):
        await client.run()
    await clean(pg, config)
    assert pg.held() == [1]


async def test_a_websocket_stream_whose_client_leaves_in_a_statement_leaves_nothing(pg: Postgres) -> None:
    config = config_of(pg)

    @websocket_stream("/")
    async def feed(db_session: AsyncSession) -> AsyncGenerator[int, None]:
        await db_session.execute(insert(1))
        yield 1
        await db_session.execute(insert(2))
        asyncio.get_running_loop().call_later(0.2, client.leave)
        await db_session.execute(SLEEP)
        yield 2

    app, _ = app_with(config, feed)
    client = Client(app)
    async with asyncio.timeout(5):
        await client.run()
    await clean(pg, config)
    assert pg.held() == [1]


@ways
async def test_a_cancelled_websocket_keeps_nothing_of_its_message(pg: Postgres, way: Any) -> None:
    config, ready = config_of(pg), Ready()

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        await db_session.execute(insert(1))
        await socket.send_json(1)
        await db_session.execute(insert(2))
        ready.set()
        await db_session.execute(SLEEP)

    app, _ = app_with(config, socket)
    await way(Client(app).run(), ready)
    await clean(pg, config)
    assert pg.held() == [1]


async def test_many_idle_websockets_need_no_connections(pg: Postgres) -> None:
    config = config_of(pg, pool_size=2)

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        async for number in socket.iter_json():
            await db_session.execute(insert(number))
            await socket.send_json(number)

    app, _ = app_with(config, socket)
    clients = [Client(app) for _ in range(12)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    for number, client in enumerate(clients):
        client.inbox.put_nowait({"type": "websocket.receive", "text": str(number)})
    assert await eventually(lambda: all(texts(client.told) for client in clients))
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)
    for client in clients:
        client.leave()
    await asyncio.gather(*tasks)
    assert pg.held() == list(range(12))


# Mounted apps


def mounted(child: Any, **settings: Any) -> Any:
    @asgi("/child", is_mount=True, copy_scope=True, **settings)
    async def mount(scope: Any, receive: Any, send: Any) -> None:
        await child(scope, receive, send)

    return mount


def starlette_child(config: Any, ran: list[Any], **options: Any) -> Starlette:
    async def write(request: Any) -> Any:
        session = await db_session(config)
        await session.execute(insert(1))
        if request.query_params.get("late"):
            await session.execute(VIOLATION)
        if request.query_params.get("early"):
            raise StarletteHTTPException(418, "early")
        if request.query_params.get("bug"):
            raise KeyError
        status = int(request.query_params.get("status", "201"))
        from starlette.background import BackgroundTask as StarletteTask

        return JSONResponse("ok", status, background=StarletteTask(ran.append, "background"))

    return Starlette(routes=[Route("/", write, methods=["POST"])], **options)


@covered
async def test_a_mounted_app_is_settled_as_any_route(pg: Postgres, options: Any) -> None:
    config, ran = config_of(pg), []
    app, _ = app_with(config, mounted(starlette_child(config, ran)), **options)
    async with calling(app, raises=True) as client:
        assert (await client.post("/child/?status=409")).status_code == 409
        await clean(pg, config)
        assert pg.held() == []
        assert (await client.post("/child/")).status_code == 201
    await clean(pg, config)
    assert (pg.held(), ran) == ([1], ["background", "background"])


@covered
@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("place", ["app", "mount"])
async def test_a_mounted_apps_failed_commit_is_answered_by_litestars_handlers(
    pg: Postgres, place: str, copies: bool, options: Any
) -> None:
    noting, ran, config = Noting(), [], config_of(pg)
    child = starlette_child(config, ran)
    handlers: Any = {IntegrityError: conflict}

    @asgi("/child", is_mount=True, copy_scope=copies, exception_handlers=handlers if place == "mount" else None)
    async def mount(scope: Any, receive: Any, send: Any) -> None:
        await child(scope, receive, send)

    given = {**options, "exception_handlers": handlers} if place == "app" else options
    if options:
        given = {**given, "middleware": [noting]}
    app, _ = app_with(config, mount, **given)
    async with calling(app, raises=True) as client:
        response = await client.post("/child/?late=1")
    assert (response.status_code, response.json()) == (409, {"handled": "IntegrityError"})
    assert noting.statuses in ([], [409])
    await clean(pg, config)
    assert (pg.held(), ran) == ([], [])


@covered
async def test_a_mounted_apps_failed_commit_without_a_handler_is_litestars_500(pg: Postgres, options: Any) -> None:
    config, ran = config_of(pg), []
    app, _ = app_with(config, mounted(starlette_child(config, ran)), **options)
    async with calling(app, raises=True) as client:
        response = await client.post("/child/?late=1")
    assert (response.status_code, response.json()["detail"]) == (500, "Internal Server Error")
    await clean(pg, config)
    assert (pg.held(), ran) == ([], [])


@covered
async def test_a_mounted_app_answers_its_own_errors_and_their_status_decides(pg: Postgres, options: Any) -> None:
    config = config_of(pg)

    async def answer(request: Any, error: Exception) -> Any:
        return PlainTextResponse("by the child", int(request.query_params.get("answers", "418")))

    child = starlette_child(config, [], exception_handlers={StarletteHTTPException: answer, IntegrityError: answer})
    app, _ = app_with(config, mounted(child), exception_handlers={IntegrityError: conflict}, **options)
    async with calling(app, raises=True) as client:
        assert (await client.post("/child/?early=1")).text == "by the child"
        assert pg.held() == []
        assert (await client.post("/child/?early=1&answers=202")).status_code == 202
        assert pg.held() == [1]
        assert (await client.post("/child/?late=1")).json() == {"handled": "IntegrityError"}
    await clean(pg, config)
    assert pg.held() == [1]


@covered
async def test_a_bug_in_a_mounted_app_keeps_nothing(pg: Postgres, options: Any) -> None:
    config = config_of(pg)
    app, _ = app_with(config, mounted(starlette_child(config, [])), **options)
    async with calling(app) as client:
        assert (await client.post("/child/?bug=1")).status_code == 500
    await clean(pg, config)
    assert pg.held() == []


async def test_a_mounted_app_uses_the_plugin_and_the_context_in_streams_and_sockets(pg: Postgres) -> None:
    config = config_of(pg)

    async def stream(request: Any) -> Any:
        from starlette.responses import StreamingResponse

        async def body() -> AsyncIterator[bytes]:
            for number in (1, 2):
                await db.get_session(request).execute(insert(number))
                yield b"x"

        assert db.get_session(request) is await db_session(config) is current_unit().session(config)
        return StreamingResponse(body())

    async def socket(socket: Any) -> None:
        await socket.accept()
        await db.get_session(socket).execute(insert(3))
        await socket.send_json(3)
        assert pg.held()[-1] == 3
        await db.get_session(socket).execute(insert(4))
        raise KeyError

    child = Starlette(routes=[Route("/", stream), WebSocketRoute("/socket/", socket)])
    app, db = app_with(config, mounted(child))
    assert (await get(app, "/child/")).text == "xx"
    assert pg.held() == [1, 2]
    client = Client(app)

    async def at_socket(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "path": "/child/socket", "raw_path": b"/child/socket"}, receive, send)

    client.app = at_socket
    await client.run()
    assert types(client.told) == ["accept", "send", "close"]
    await clean(pg, config)
    assert pg.held() == [1, 2, 3]


@covered
@pytest.mark.parametrize("own", [True, False])
async def test_a_mounted_litestar_app_is_served_in_the_same_unit_and_answers_its_own_failed_commit(
    pg: Postgres, own: bool, options: Any
) -> None:
    config = config_of(pg)

    @at_post("/")
    async def write(request: Request) -> str:
        session = await db_session(config)
        await session.execute(insert(1))
        if request.query_params:
            await session.execute(VIOLATION)
        return "ok"

    def by_the_child(request: Request, error: Exception) -> Response:
        return Response({"handled": "by the child"}, status_code=418)

    plain: Any = {"openapi_config": None, "logging_config": None}
    handlers: Any = {IntegrityError: by_the_child} if own else {}
    child = Litestar([write], exception_handlers=handlers, **plain)
    app, _ = app_with(config, mounted(child), exception_handlers={IntegrityError: conflict}, **options)
    async with calling(app, raises=True) as client:
        response = await client.post("/child/?late=1")
        assert response.status_code == (418 if own else 500)
        await clean(pg, config)
        assert pg.held() == []
        assert (await client.post("/child/")).status_code == 201
    assert pg.held() == [1]


async def test_a_mounted_litestar_app_with_a_plugin_of_its_own_joins_the_unit(pg: Postgres, file: File) -> None:
    config, other = config_of(file), config_of(pg, bind_key="other")

    @at_post("/")
    async def write(request: Request, other_session: AsyncSession) -> str:
        await other_session.execute(insert(2))
        if request.query_params:
            await other_session.execute(VIOLATION)
        else:
            await (await db_session(config)).execute(insert(1))
        return "ok"

    plain: Any = {"openapi_config": None, "logging_config": None}
    child = Litestar([write], plugins=[Transept(other)], exception_handlers={IntegrityError: conflict}, **plain)
    app, _ = app_with(config, mounted(child), exception_handlers={IntegrityError: conflict})
    async with calling(app, raises=True) as client:
        assert (await client.post("/child/?late=1")).status_code == 409
        await clean(pg, other)
        assert (pg.held(), file.held()) == ([], [])
        assert (await client.post("/child/")).status_code == 201
    assert (file.held(), pg.held()) == ([1], [2])


async def test_a_block_in_a_mounted_app_is_undone_alone(pg: Postgres) -> None:
    config = config_of(pg)

    async def child(scope: Any, receive: Any, send: Any) -> None:
        session = await db_session(config)
        await session.execute(insert(1))
        with pytest.raises(KeyError):
            async with unit_of_work():
                await session.execute(insert(2))
                raise KeyError
        await PlainTextResponse("ok", 201)(scope, receive, send)

    app, _ = app_with(config, mounted(child))
    assert (await post(app, "/child")).status_code == 201
    await clean(pg, config)
    assert pg.held() == [1]
