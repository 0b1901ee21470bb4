"""Every kind of endpoint, body and mount that Starlette has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, get, http, insert, out_of_pool, post, websocket
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.endpoints import HTTPEndpoint, WebSocketEndpoint
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from transept import OpenCursorError, OutsideScope, current_unit
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio


def app_with(config: Any, *routes: Any, **options: Any) -> tuple[Starlette, Transept]:
    app = Starlette(routes=list(routes), **options)
    return app, Transept(config, app)


def add(app: Starlette, endpoint: Any, path: str = "/", methods: Any = ("GET", "POST")) -> None:
    app.router.routes.append(Route(path, endpoint, methods=list(methods) if methods else None))


# Mounted apps


async def test_a_mounted_app_without_a_gate_uses_that_of_the_outer_app(file: File) -> None:
    app, db = app_with(file.config())

    async def write(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        await db.get_session(request).execute(insert(2))
        return Response(status_code=int(request.query_params["status"]))

    app.router.routes.append(Mount("/in", Starlette(routes=[Route("/x", write, methods=["POST"])])))
    async with calling(app, raises=True) as client:
        assert (await client.post("/in/x?status=400")).status_code == 400
        assert file.held() == []
        assert (await client.post("/in/x?status=201")).status_code == 201
    assert file.held() == [1, 2]


async def test_a_mounted_app_with_a_transept_of_its_own_shares_the_unit(file: File, other_file: File) -> None:
    child, inner = app_with(other_file.config(bind_key="inner"))
    app, outer = app_with(file.config(), Mount("/in", child))

    async def write(request: Request) -> Response:
        await outer.get_session(request).execute(insert(1))
        await inner.get_session(request).execute(insert(2))
        assert request.state.db_session is outer.get_session(request)
        assert request.state.inner_session is inner.get_session(request)
        return Response(status_code=int(request.query_params["status"]))

    add(child, write, "/x")
    async with calling(app, raises=True) as client:
        assert (await client.post("/in/x?status=400")).status_code == 400
        assert (file.held(), other_file.held()) == ([], [])
        assert (await client.post("/in/x?status=201")).status_code == 201
    assert (file.held(), other_file.held()) == ([1], [2])


async def test_a_mounted_app_may_have_a_default_database_of_its_own(file: File, other_file: File) -> None:
    child, inner = app_with(other_file.config())
    app, outer = app_with(file.config(), Mount("/in", child))

    async def write(request: Request) -> Response:
        await outer.get_session(request).execute(insert(1))
        await request.state.db_session.execute(insert(2))
        assert request.state.db_session is inner.get_session(request)
        assert current_unit().session() is not None
        return Response(status_code=201)

    add(child, write, "/x")
    assert (await post(app, "/in/x")).status_code == 201
    assert (file.held(), other_file.held()) == ([1], [2])


async def test_only_the_mounted_app_has_a_gate(file: File) -> None:
    child, inner = app_with(file.config())
    app = Starlette(routes=[Mount("/in", child)])

    async def write(request: Request) -> Response:
        await inner.get_session(request).execute(insert(1))
        return Response(status_code=int(request.query_params["status"]))

    add(child, write, "/x")
    async with calling(app) as client:
        assert (await client.post("/in/x?status=409")).status_code == 409
        assert (await client.post("/in/x?status=201")).status_code == 201
    assert file.held() == [1]


@pytest.mark.parametrize("outer_gate", [True, False])
@pytest.mark.parametrize("inner_gate", [True, False])
@pytest.mark.parametrize("childs_own", [True, False])
async def test_a_failed_commit_in_a_mounted_app_is_an_error_whoever_has_handlers(
    file: File, other_file: File, outer_gate: bool, inner_gate: bool, childs_own: bool
) -> None:
    if not (outer_gate or inner_gate):
        return
    handlers = {IntegrityError: lambda request, error: Response("child", 409)} if childs_own else {}
    child = Starlette(exception_handlers=handlers)
    app = Starlette(
        routes=[Mount("/in", child)],
        exception_handlers={IntegrityError: lambda request, error: Response("parent", 409)},
    )
    dbs = [Transept(file.config(), one) for one, wanted in ((app, outer_gate), (child, inner_gate)) if wanted]
    ran: list[int] = []

    async def write(request: Request) -> Response:
        session = dbs[-1].get_session(request)
        await session.execute(insert(1))
        await session.execute(VIOLATION)
        return Response(status_code=201, background=BackgroundTask(ran.append, 1))

    add(child, write, "/x")
    response = await post(app, "/in/x")
    assert response.status_code == 409 or not childs_own, response.text
    assert response.status_code in (409, 500)
    assert (file.held(), ran) == ([], [])


async def test_a_failed_commit_in_a_mounted_router_is_answered_by_the_app(file: File) -> None:
    app = Starlette(exception_handlers={IntegrityError: lambda request, error: Response("late", 409)})
    db = Transept(file.config(), app)

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(VIOLATION)
        return Response(status_code=201)

    route = Route("/x", write, methods=["POST"])
    app.router.routes += [Mount("/a", routes=[route]), Mount("/b", Router([route])), Host("h.test", Router([route]))]
    async with calling(app) as client:
        for url in ("/a/x", "/b/x", "http://h.test/x"):
            assert (await client.post(url)).status_code == 409


# Plain endpoints, classes, methods


async def test_a_plain_endpoint_uses_a_blocking_session_in_its_thread(file: File) -> None:
    config = file.sync_config()
    app, db = app_with(config)

    def write(request: Request) -> Response:
        assert threading.current_thread() is not threading.main_thread()
        request.state.db_session.execute(insert(1))
        assert db.get_sync_session(request).scalar(COUNT) == len(file.held()) + 1
        return Response(status_code=int(request.query_params["status"]))

    add(app, write)
    async with calling(app, raises=True) as client:
        assert (await client.post("/?status=500")).status_code == 500
        assert file.held() == []
        answers = await asyncio.gather(*(client.post("/?status=201") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [201] * 5
    assert file.held() == [1] * 5
    assert out_of_pool(config) == 0


async def test_a_plain_endpoints_failed_commit_is_answered_by_a_handler(file: File) -> None:
    app, db = app_with(
        file.sync_config(), exception_handlers={IntegrityError: lambda request, error: Response("late", 409)}
    )

    def write(request: Request) -> Response:
        db.get_sync_session(request).execute(VIOLATION)
        return Response(status_code=201)

    add(app, write)
    assert (await post(app)).status_code == 409


async def test_a_class_of_endpoints_works_in_both_colours(file: File) -> None:
    class Endpoint(HTTPEndpoint):
        async def post(self, request: Request) -> Response:
            await request.state.db_session.execute(insert(1))
            return Response(status_code=201)

        def get(self, request: Request) -> Response:
            assert current_unit() is not None
            return Response()

    app, _ = app_with(file.config(), Route("/", Endpoint))
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
        assert (await client.get("/")).status_code == 200
        assert (await client.delete("/")).status_code == 405
    assert file.held() == [1]


async def test_an_async_generator_of_a_request_body_may_be_stored_as_it_comes(file: File) -> None:
    app, db = app_with(file.config())

    async def upload(request: Request) -> Response:
        async for chunk in request.stream():
            if chunk:
                await db.get_session(request).execute(insert(int(chunk)))
        return Response(status_code=201)

    async def chunks() -> AsyncIterator[bytes]:
        for number in (b"1", b"2", b"3"):
            yield number

    add(app, upload)
    assert (await post(app, content=chunks())).status_code == 201
    assert file.held() == [1, 2, 3]


async def test_head_has_the_headers_and_writes_nothing_twice(file: File) -> None:
    app, db = app_with(file.config())

    async def read(request: Request) -> Response:
        return JSONResponse(await db.get_session(request).scalar(COUNT))

    add(app, read, methods=["GET"])
    async with calling(app, raises=True) as client:
        response = await client.head("/")
    assert (response.status_code, response.headers["content-length"], response.content) == (200, "1", b"")


async def test_a_get_that_writes_is_kept(file: File) -> None:
    app, db = app_with(file.config())

    async def read(request: Request) -> Response:
        session = db.get_session(request)
        await session.scalar(COUNT)
        await session.execute(insert(1))
        return Response()

    add(app, read)
    assert (await get(app)).status_code == 200
    assert file.held() == [1]


@pytest.mark.parametrize("mode", ["autocommit", "autocommit_include_redirect"])
async def test_a_redirect_is_kept_only_in_its_mode(file: File, mode: Any) -> None:
    app, db = app_with(file.config(commit_mode=mode))

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        return RedirectResponse("/")

    add(app, write)
    assert (await post(app)).status_code == 307
    assert file.held() == ([1] if mode.endswith("redirect") else [])


# Files: nothing of the database is touched


async def test_files_static_files_and_404_take_no_connection(pg: Postgres, tmp_path: Path) -> None:
    (tmp_path / "page.txt").write_text("hello")
    config = pg.config(pool_size=1)

    async def file_endpoint(request: Request) -> Response:
        request.state.db_session  # noqa: B018 - made, not used
        return FileResponse(tmp_path / "page.txt")

    app, _ = app_with(config, Route("/file", file_endpoint), Mount("/static", StaticFiles(directory=tmp_path)))
    async with calling(app) as client:
        for path in ("/file", "/static/page.txt"):
            response = await client.get(path)
            assert (response.status_code, response.text) == (200, "hello")
            part = await client.get(path, headers={"range": "bytes=1-2"})
            assert (part.status_code, part.text) == (206, "el")
            head = await client.head(path)
            assert (head.status_code, head.headers["content-length"]) == (200, "5")
        assert (await client.get("/static/none")).status_code == 404
        assert (await client.get("/none")).status_code == 404
    assert pg.backends() == 0


async def test_a_file_after_a_write_is_sent_after_its_commit(file: File, tmp_path: Path) -> None:
    page = tmp_path / "page.txt"
    page.write_text("hello" * 100_000)
    app, db = app_with(file.config())

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        if "late" in request.query_params:
            await db.get_session(request).execute(VIOLATION)
        return FileResponse(page)

    add(app, write)
    async with calling(app) as client:
        assert (await client.post("/?late=1")).status_code == 500
        assert file.held() == []
        assert len((await client.post("/")).content) == 500_000
    assert file.held() == [1]


# Streams


async def test_a_stream_without_the_database_holds_no_connection(pg: Postgres) -> None:
    config = pg.config(pool_size=1)
    app, db = app_with(config)
    seen: list[int] = []

    async def stream(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))

        async def body() -> AsyncIterator[bytes]:
            for _ in range(3):
                seen.append(out_of_pool(config) + pg.in_transaction())
                yield b"x"

        return StreamingResponse(body())

    add(app, stream)
    assert (await get(app)).text == "xxx"
    assert seen == [0, 0, 0]
    assert pg.held() == [1]


async def test_a_stream_that_reads_holds_one_transaction_until_it_is_read(pg: Postgres) -> None:
    config = pg.config(pool_size=1)
    app, db = app_with(config)
    seen: list[int] = []

    async def stream(request: Request) -> Response:
        session = db.get_async_session(request)

        async def body() -> AsyncIterator[bytes]:
            async for row in await session.stream(text("SELECT generate_series(1, 4), txid_current()")):
                seen.append(row[1])
                yield b"x"
            yield b"y"
            seen.append(pg.in_transaction())

        return StreamingResponse(body())

    add(app, stream)
    assert (await get(app)).text == "xxxxy"
    assert len(set(seen[:4])) == 1
    assert seen[4] == 0
    assert out_of_pool(config) == 0


async def test_a_stream_writes_chunk_by_chunk_and_keeps_what_was_before_an_error(file: File) -> None:
    config = file.config()
    app, db = app_with(config)

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for number in (1, 2):
                await db.get_session(request).execute(insert(number))
                yield b"x"
                assert file.held()[-1] == number
            await db.get_session(request).execute(insert(3))
            raise KeyError

        return StreamingResponse(body())

    add(app, stream)
    with pytest.raises(KeyError):
        async with calling(app, raises=True) as client:
            await client.get("/")
    assert file.held() == [1, 2]
    assert out_of_pool(config) == 0


async def test_a_plain_generator_streams_with_a_blocking_session(file: File) -> None:
    config = file.sync_config()
    app, db = app_with(config)

    def stream(request: Request) -> Response:
        session = db.get_sync_session(request)
        session.execute(insert(1))

        def body() -> Iterator[bytes]:
            for number in (2, 3):
                session.execute(insert(number))
                yield str(session.scalar(COUNT)).encode()

        return StreamingResponse(body())

    add(app, stream)
    async with calling(app, raises=True) as client:
        assert (await client.get("/")).text == "23"
    assert file.held() == [1, 2, 3]
    assert out_of_pool(config) == 0


async def test_a_cursor_opened_before_the_stream_is_an_error_before_the_first_byte(pg: Postgres) -> None:
    config = pg.config()
    app, db = app_with(config)

    async def stream(request: Request) -> Response:
        result = await db.get_async_session(request).stream(text("SELECT generate_series(1, 9)"))

        async def body() -> AsyncIterator[bytes]:
            async for _ in result:
                yield b"x"

        return StreamingResponse(body())

    add(app, stream)
    with pytest.raises(OpenCursorError, match="inside the generator"):
        async with calling(app, raises=True) as client:
            await client.get("/")
    assert (await get(app)).status_code == 500
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


async def test_a_stream_in_manual_mode_keeps_what_the_app_committed_and_no_more(file: File, caplog: Any) -> None:
    app, db = app_with(file.config(commit_mode="manual"))

    async def stream(request: Request) -> Response:
        session = db.get_async_session(request)

        async def body() -> AsyncIterator[bytes]:
            await session.execute(insert(1))
            yield b"x"
            assert file.held() == []
            await session.commit()
            yield b"y"
            await session.execute(insert(2))

        return StreamingResponse(body())

    add(app, stream)
    async with calling(app, raises=True) as client:
        assert (await client.get("/")).text == "xy"
    assert file.held() == [1]
    assert len([one for one in caplog.records if one.name == "transept"]) == 1


# Background tasks


async def test_several_background_tasks_share_a_fresh_unit_after_the_response(file: File) -> None:
    config = file.config()
    app, db = app_with(config)
    seen: list[Any] = []

    async def write(request: Request) -> Response:
        first = db.get_async_session(request)
        await first.execute(insert(1))

        async def task(number: int) -> None:
            session = db.get_async_session(request)
            assert session is request.state.db_session
            assert session is not first
            seen.append(session)
            await session.execute(insert(number))

        tasks = BackgroundTasks()
        tasks.add_task(task, 2)
        tasks.add_task(task, 3)
        return JSONResponse("ok", 201, background=tasks)

    add(app, write)
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert seen[0] is seen[1]
    assert file.held() == [1, 2, 3]
    assert out_of_pool(config) == 0


async def test_background_tasks_roll_back_together_when_one_raises(file: File) -> None:
    app, db = app_with(file.config())

    async def write(request: Request) -> Response:
        async def task(number: int) -> None:
            await db.get_session(request).execute(insert(number))
            if number == 3:
                raise KeyError

        tasks = BackgroundTasks()
        tasks.add_task(task, 2)
        tasks.add_task(task, 3)
        return JSONResponse("ok", 201, background=tasks)

    add(app, write)
    with pytest.raises(KeyError):
        async with calling(app, raises=True) as client:
            await client.post("/")
    assert file.held() == []


async def test_the_requests_session_in_a_background_tasks_closure_is_outside_its_scope(file: File) -> None:
    app, db = app_with(file.config())

    async def write(request: Request) -> Response:
        session = db.get_async_session(request)
        await session.execute(insert(1))

        async def task() -> None:
            await session.close()
            await session.rollback()
            await session.execute(insert(2))

        return JSONResponse("ok", 201, background=BackgroundTask(task))

    add(app, write)
    with pytest.raises(OutsideScope, match=r"POST /.*is over.*fresh one"):
        async with calling(app, raises=True) as client:
            await client.post("/")
    assert file.held() == [1]


async def test_a_background_tasks_work_is_kept_also_after_an_error_status_and_in_manual_mode(file: File) -> None:
    app, db = app_with(file.config(commit_mode="manual"))

    async def write(request: Request) -> Response:
        async def task() -> None:
            await db.get_session(request).execute(insert(2))

        return JSONResponse("no", 400, background=BackgroundTask(task))

    add(app, write)
    assert (await post(app)).status_code == 400
    assert file.held() == [2]


async def test_a_plain_background_task_uses_a_blocking_session(file: File) -> None:
    config = file.sync_config()
    app, db = app_with(config)

    def write(request: Request) -> Response:
        db.get_sync_session(request).execute(insert(1))

        def task() -> None:
            db.get_sync_session(request).execute(insert(2))

        return JSONResponse("ok", 201, background=BackgroundTask(task))

    add(app, write)
    assert (await post(app)).status_code == 201
    assert file.held() == [1, 2]
    assert out_of_pool(config) == 0


async def test_a_background_task_whose_commit_fails_raises_to_the_server(file: File) -> None:
    config = file.config()
    app, db = app_with(config)

    async def write(request: Request) -> Response:
        async def task() -> None:
            await db.get_session(request).execute(insert(2))
            await db.get_session(request).execute(VIOLATION)

        return JSONResponse("ok", 201, background=BackgroundTask(task))

    add(app, write)
    with pytest.raises(IntegrityError):
        async with calling(app, raises=True) as client:
            await client.post("/")
    assert file.held() == []
    assert out_of_pool(config) == 0


async def test_a_background_task_that_sleeps_holds_no_connection(pg: Postgres) -> None:
    config = pg.config(pool_size=1)
    app, db = app_with(config)
    seen: list[int] = []

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))

        async def task() -> None:
            seen.append(out_of_pool(config) + pg.in_transaction())

        return JSONResponse("ok", 201, background=BackgroundTask(task))

    add(app, write)
    assert (await post(app)).status_code == 201
    assert seen == [0]


async def test_a_background_task_writes_after_a_stream_that_the_client_left_in_the_middle_of_a_write(
    file: File,
) -> None:
    config = file.config()
    app, db = app_with(config)
    gone = asyncio.Event()

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await db.get_session(request).execute(insert(1))
            gone.set()
            await asyncio.sleep(5)
            yield b"second"

        async def later() -> None:
            await db.get_session(request).execute(insert(2))

        return StreamingResponse(body(), background=BackgroundTask(later))

    add(app, stream)
    async with asyncio.timeout(3):
        await http(app, [], gone=gone, spec="2.3")
    assert file.held() == [2]
    assert out_of_pool(config) == 0


async def test_a_background_task_after_a_client_that_left_while_commit_ran_is_kept(pg: Postgres) -> None:
    pg.slow_commit(0.3)
    config = pg.config()
    app, db = app_with(config)
    gone = asyncio.Event()

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"

        async def later() -> None:
            await db.get_session(request).execute(insert(2))

        await db.get_session(request).execute(insert(1))
        asyncio.get_running_loop().call_later(0.1, gone.set)
        return StreamingResponse(body(), background=BackgroundTask(later))

    add(app, stream)
    told: list[Any] = []
    await http(app, told, gone=gone, spec="2.3")
    assert (told, pg.held()) == ([], [1, 2])
    assert out_of_pool(config) == 0


# WebSockets


def test_a_websocket_keeps_each_message_before_it_is_answered(file: File) -> None:
    app, db = app_with(file.config(commit_mode="manual"))

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        while (number := await websocket.receive_json()) is not None:
            session = db.get_async_session(websocket)
            assert session is websocket.state.db_session
            await session.execute(insert(number))
            await websocket.send_json(await session.scalar(COUNT))
        await websocket.close()

    app.router.routes.append(WebSocketRoute("/", socket))
    with TestClient(app) as client, client.websocket_connect("/") as connection:
        for number in (1, 2, 3):
            connection.send_json(number)
            assert connection.receive_json() == number
            assert len(file.held()) == number
        connection.send_json(None)


def test_a_websocket_that_raises_keeps_the_messages_before(file: File) -> None:
    app, db = app_with(file.config())

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        async for number in websocket.iter_json():
            await db.get_session(websocket).execute(insert(number))
            if number == 2:
                raise KeyError

    app.router.routes.append(WebSocketRoute("/", socket))
    with TestClient(app) as client, pytest.raises(KeyError), client.websocket_connect("/") as connection:
        connection.send_json(1)
        connection.send_json(2)
        connection.receive_json()
    assert file.held() == [1]


def test_a_websocket_is_never_told_of_what_could_not_be_kept(file: File) -> None:
    app, db = app_with(file.config())
    told: list[Any] = []

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.receive_json()
        await db.get_session(websocket).execute(insert(1))
        await db.get_session(websocket).execute(VIOLATION)
        await websocket.send_json("kept")

    app.router.routes.append(WebSocketRoute("/", socket))
    with TestClient(app) as client, pytest.raises(IntegrityError), client.websocket_connect("/") as connection:
        connection.send_json(1)
        told.append(connection.receive_json())
    assert (told, file.held()) == ([], [])


async def test_a_websocket_endpoint_class_keeps_what_its_methods_write(file: File) -> None:
    class Socket(WebSocketEndpoint):
        encoding = "json"

        async def on_receive(self, websocket: WebSocket, data: Any) -> None:
            await websocket.state.db_session.execute(insert(data))
            await websocket.send_json("ok")

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            await websocket.state.db_session.execute(insert(99))

    app, _ = app_with(file.config(), WebSocketRoute("/", Socket))
    assert len(await websocket(app, 1, 2)) == 3
    assert file.held() == [1, 2, 99]


async def test_a_waiting_websocket_holds_no_connection(pg: Postgres) -> None:
    config = pg.config(pool_size=1)
    app, db = app_with(config)
    waiting, told = asyncio.Event(), []
    inbox: asyncio.Queue[Any] = asyncio.Queue()

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                number = await websocket.receive_json()
                await db.get_session(websocket).execute(insert(number))
        except WebSocketDisconnect:
            return

    async def receive() -> Any:
        if inbox.empty():
            waiting.set()
        return await inbox.get()

    async def send(message: Any) -> None:
        told.append(message)

    app.router.routes.append(WebSocketRoute("/", socket))
    scope = {
        "type": "websocket", "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "root_path": "",
        "scheme": "ws", "server": ("test", 80), "client": ("test", 1), "subprotocols": [], "asgi": {"version": "3.0"},
    }  # fmt: skip
    call = asyncio.create_task(app(scope, receive, send))
    inbox.put_nowait({"type": "websocket.connect"})
    inbox.put_nowait({"type": "websocket.receive", "text": "1"})
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while pg.held() != [1]:
            await asyncio.sleep(0.01)
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)
    inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})
    await call


# Lifespan and clients


def test_the_state_of_a_lifespan_still_arrives(file: File) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        yield {"x": 1, "shared": []}

    app, _ = app_with(file.config(), lifespan=lifespan)

    async def endpoint(request: Request) -> Response:
        request.state.shared.append(request.state.x)
        request.state.x = 2
        await request.state.db_session.execute(insert(1))
        return JSONResponse(len(request.state.shared))

    add(app, endpoint)
    with TestClient(app) as client:
        assert [client.get("/").json() for _ in range(3)] == [1, 2, 3]
    assert file.held() == [1, 1, 1]


def test_a_lifespan_may_use_the_database(file: File) -> None:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        async with db.with_async_session() as session:
            await session.execute(insert(1))
        yield
        async with db.with_async_session() as session:
            await session.execute(insert(2))

    app, db = app_with(file.config(), lifespan=lifespan)
    with TestClient(app):
        assert file.held() == [1]
    assert file.held() == [1, 2]


def test_a_client_without_a_lifespan_keeps_and_rolls_back_as_well(file: File) -> None:
    app, db = app_with(file.config())

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        return Response(status_code=int(request.query_params["status"]))

    add(app, write)
    client = TestClient(app)
    assert [client.post(f"/?status={status}").status_code for status in (201, 400, 201)] == [201, 400, 201]
    assert file.held() == [1, 1]


def test_a_test_client_that_raises_sees_the_original_error_of_a_failed_commit(file: File) -> None:
    app, db = app_with(file.config())

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(VIOLATION)
        return Response(status_code=201)

    add(app, write)
    with TestClient(app) as client, pytest.raises(IntegrityError) as caught:
        client.post("/")
    assert any("did not commit" in note for note in caught.value.__notes__)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 500
