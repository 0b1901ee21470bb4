"""A Starlette app behind a real server and real sockets, with clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from held import VIOLATION, File, Postgres, insert
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from transept.extensions.starlette import Transept


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app in a server of its own; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()[:2]
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


def leaving(url: str, method: str = "POST", path: str = "/") -> socket.socket:
    """A client that has sent its request, and may leave."""
    address = httpx.URL(url)
    client = socket.create_connection((address.host, address.port))
    client.sendall(f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n".encode())
    return client


def within(holds: Any, seconds: float = 5) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if holds():
            return True
        time.sleep(0.02)
    return False


def app_with(config: Any, endpoint: Any, **options: Any) -> Starlette:
    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])], **options)
    Transept(config, app)
    return app


def test_a_server_tells_after_the_commit(file: File) -> None:
    async def write(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        return Response(status_code=int(request.query_params["status"]))

    with serving(app_with(file.config(), write)) as url, httpx.Client(base_url=url) as client:
        assert client.post("/?status=409").status_code == 409
        assert file.held() == []
        assert client.post("/?status=201").status_code == 201
        assert file.held() == [1]


def test_a_failed_commit_is_a_500_on_the_wire_and_with_a_handler_its_answer(file: File) -> None:
    async def write(request: Request) -> Response:
        await request.state.db_session.execute(VIOLATION)
        return JSONResponse({"id": 1}, 201)

    with serving(app_with(file.config(), write)) as url:
        response = httpx.post(url)
        assert (response.status_code, response.text) == (500, "Internal Server Error")
    handlers: Any = {IntegrityError: lambda request, error: PlainTextResponse("late", 409)}
    with serving(app_with(file.config(), write, exception_handlers=handlers)) as url:
        response = httpx.post(url)
        assert (response.status_code, response.text, response.headers["content-length"]) == (409, "late", "4")


def test_the_next_request_of_the_same_connection_is_served_after_a_failed_commit(file: File) -> None:
    async def write(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        if "late" in request.query_params:
            await request.state.db_session.execute(VIOLATION)
        return Response(status_code=201)

    handlers: Any = {IntegrityError: lambda request, error: PlainTextResponse("late", 409)}
    app = app_with(file.config(), write, exception_handlers=handlers)
    with serving(app) as url, httpx.Client(base_url=url) as client:
        assert [client.post(path).status_code for path in ("/?late=1", "/", "/?late=1", "/")] == [409, 201, 409, 201]
    assert file.held() == [1, 1]


def test_a_client_that_left_without_the_app_being_told_is_kept(pg: Postgres) -> None:
    asked, go = threading.Event(), threading.Event()

    async def write(request: Request) -> Response:
        asked.set()
        await asyncio.to_thread(go.wait)
        await request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    with serving(app_with(pg.config(), write)) as url:
        client = leaving(url)
        assert asked.wait(5)
        client.close()
        go.set()
        assert within(lambda: pg.held() == [1])
        assert within(lambda: pg.in_transaction() == 0)


def test_a_client_that_left_and_the_app_was_told_keeps_nothing(pg: Postgres, caplog: Any) -> None:
    asked, ended = threading.Event(), threading.Event()

    async def write(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        asked.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        ended.set()
        return Response(status_code=201)

    with serving(app_with(pg.config(), write)) as url:
        client = leaving(url)
        assert asked.wait(5)
        client.close()
        assert ended.wait(5)
        assert within(lambda: pg.in_transaction() == 0)
        assert pg.held() == []
    assert [one for one in caplog.records if one.name == "transept"] == []


def test_a_client_that_left_while_uploading_keeps_nothing(pg: Postgres) -> None:
    ended: list[Any] = []

    async def write(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        try:
            await request.body()
        except ClientDisconnect as error:
            ended.append(error)
            raise
        return Response(status_code=201)

    with serving(app_with(pg.config(), write)) as url:
        address = httpx.URL(url)
        client = socket.create_connection((address.host, address.port))
        client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\nhalf")
        time.sleep(0.1)
        client.close()
        assert within(lambda: bool(ended))
        assert within(lambda: pg.in_transaction() == 0)
    assert pg.held() == []


def test_a_client_that_leaves_in_a_stream_leaves_nothing_open(pg: Postgres) -> None:
    began = threading.Event()

    async def stream(request: Request) -> Response:
        session = request.state.db_session

        async def body() -> AsyncIterator[bytes]:
            await session.execute(insert(1))
            yield b"first"
            await session.execute(insert(2))
            began.set()
            async for row in await session.stream(text("SELECT pg_sleep(0.02), v FROM generate_series(1, 500) AS v")):
                yield b"x" * 1000

        return StreamingResponse(body())

    with serving(app_with(pg.config(), stream)) as url:
        client = leaving(url, "GET")
        assert began.wait(5)
        client.close()
        assert within(lambda: pg.in_transaction() == 0)
        assert pg.held() == [1]
        assert httpx.get(f"{url}/none").status_code == 404


def test_a_background_task_after_a_stream_that_the_client_left_is_kept(pg: Postgres) -> None:
    began, ran = threading.Event(), threading.Event()

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(500):
                yield b"x" * 1000
                began.set()
                await asyncio.sleep(0.01)

        async def later() -> None:
            await request.state.db_session.execute(insert(1))
            ran.set()

        await request.state.db_session.execute(insert(0))
        return StreamingResponse(body(), background=BackgroundTask(later))

    with serving(app_with(pg.config(), stream)) as url:
        client = leaving(url, "GET")
        assert began.wait(5)
        client.close()
        assert ran.wait(10)
        assert within(lambda: pg.in_transaction() == 0)
        assert pg.held() == [0, 1]


@pytest.mark.parametrize("length", [True, False])
def test_a_streamed_body_whose_last_commit_fails_is_never_complete(file: File, length: bool) -> None:
    async def stream(request: Request) -> Response:
        session = request.state.db_session

        async def body() -> AsyncIterator[bytes]:
            await session.execute(insert(1))
            yield b"kept "
            await session.execute(insert(2))
            await session.execute(VIOLATION)
            yield b"lost"

        return StreamingResponse(body(), headers={"content-length": "9"} if length else {})

    with serving(app_with(file.config(), stream)) as url:
        with pytest.raises(httpx.RemoteProtocolError, match=r"without sending complete|incomplete|peer closed"):
            httpx.get(url)
        assert file.held() == [1]


def test_a_commit_that_fails_after_the_last_chunk_truncates_the_body(file: File) -> None:
    async def stream(request: Request) -> Response:
        session = request.state.db_session

        async def body() -> AsyncIterator[bytes]:
            yield b"all"
            await session.execute(VIOLATION)

        return StreamingResponse(body(), headers={"content-length": "3"} if "length" in request.query_params else {})

    with serving(app_with(file.config(), stream)) as url:
        for path in ("/", "/?length=1"):
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.get(url + path)


def test_a_stream_that_raises_half_way_is_truncated(file: File) -> None:
    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"some"
            await request.state.db_session.execute(insert(1))
            raise KeyError

        return StreamingResponse(body())

    with serving(app_with(file.config(), stream)) as url, pytest.raises(httpx.RemoteProtocolError):
        httpx.get(url)
    assert file.held() == []


def test_a_background_task_does_not_keep_the_client_waiting(file: File) -> None:
    go = threading.Event()

    async def write(request: Request) -> Response:
        async def later() -> None:
            await asyncio.to_thread(go.wait)
            await request.state.db_session.execute(insert(2))

        await request.state.db_session.execute(insert(1))
        return JSONResponse("ok", 201, background=BackgroundTask(later))

    with serving(app_with(file.config(), write)) as url:
        assert httpx.post(url).status_code == 201
        assert file.held() == [1]
        go.set()
        assert within(lambda: file.held() == [1, 2])


def test_the_shutdown_of_the_server_closes_every_connection(pg: Postgres) -> None:
    async def write(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    with serving(app_with(pg.config(), write)) as url:
        assert httpx.post(url).status_code == 201
        assert pg.backends() == 1
    assert within(lambda: pg.backends() == 0)


def test_plain_endpoints_use_their_threads_and_leave_nothing(pg: Postgres) -> None:
    def write(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    with serving(app_with(pg.sync_config(pool_size=3), write)) as url, httpx.Client(base_url=url) as client:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(client.post("/").status_code)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [201] * 20
        assert pg.in_transaction() == 0
    assert len(pg.held()) == 20
    assert within(lambda: pg.backends() == 0)


def test_a_hundred_clients_listen_to_events_on_a_pool_of_five(pg: Postgres) -> None:
    config = pg.config(pool_size=5)
    clients, rounds = 100, 3

    async def events(request: Request) -> Response:
        session = request.state.db_session

        async def body() -> AsyncIterator[bytes]:
            for _ in range(rounds):
                count = await session.scalar(text("SELECT count(*) FROM held"))
                yield f"data: {json.dumps(count)}\n\n".encode()
                await asyncio.sleep(0.2)

        return StreamingResponse(body(), media_type="text/event-stream")

    async def everybody(url: str) -> list[str]:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=20) as client:
            answers = await asyncio.gather(*(client.get("/") for _ in range(clients)))
            return [answer.text for answer in answers]

    with serving(app_with(config, events)) as url:
        began = time.monotonic()
        bodies = asyncio.run(everybody(url))
        assert time.monotonic() - began < 10
        assert bodies == ["data: 0\n\n" * rounds] * clients
        assert pg.in_transaction() == 0
        assert pg.backends() <= 5


def test_requests_without_the_database_pass_while_the_pool_is_exhausted(pg: Postgres) -> None:
    go, holding = threading.Event(), threading.Semaphore(0)

    async def endpoint(request: Request) -> Response:
        if request.method == "POST":
            await request.state.db_session.execute(insert(1))
            holding.release()
            await asyncio.to_thread(go.wait)
        return Response(status_code=201)

    with serving(app_with(pg.config(pool_size=2), endpoint)) as url:
        writers = [threading.Thread(target=lambda: httpx.post(url, timeout=20)) for _ in range(2)]
        for writer in writers:
            writer.start()
        assert all(holding.acquire(timeout=5) for _ in writers)
        with httpx.Client(base_url=url) as client:
            assert {client.get("/").status_code for _ in range(100)} == {201}
        go.set()
        for writer in writers:
            writer.join()
    assert pg.held() == [1, 1]
