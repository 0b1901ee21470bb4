"""What stands between a route and the gate may pass messages on late, or from a task of its own."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from held import VIOLATION, File, Postgres, http, insert
from litestar import get
from litestar.handlers import websocket_stream
from litestar.response import Stream
from litestar.testing import TestClient
from litestar_app import app_with, clean, config_of
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio


class FromATask:
    """The app runs in a task; what it sends is passed on by another."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        messages: asyncio.Queue[Any] = asyncio.Queue()

        async def run() -> None:
            try:
                await self.app(scope, receive, messages.put)
            finally:
                await messages.put(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                await send(message)
        finally:
            await task


class Buffered:
    """What the app sends is passed on when it is whole."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        messages: list[Any] = []

        async def keep(message: Any) -> None:
            messages.append(message)
            if is_complete(messages):
                for one in messages:
                    await send(one)

        await self.app(scope, receive, keep)


class Base(BaseHTTPMiddleware):
    async def dispatch(self, request: Any, call_next: Any) -> Any:
        return await call_next(request)


between = pytest.mark.parametrize("middleware", [FromATask, Buffered, Base])


class Told(list[Any]):
    """What the client is told; it leaves when it has a whole response, as servers say then."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = asyncio.Event()

    def append(self, message: Any) -> None:
        super().append(message)
        if is_complete(self):
            self.whole.set()


async def call(app: Any, told: Told) -> None:
    async with asyncio.timeout(10):
        await http(app, told, gone=told.whole)


def body_of(told: list[Any]) -> bytes:
    return b"".join(one.get("body", b"") for one in told)


def is_complete(told: list[Any]) -> bool:
    return bool(told) and told[-1]["type"] == "http.response.body" and not told[-1].get("more_body")


@between
@pytest.mark.parametrize("chunks", [[b"0", b"first", b"second"], []], ids=["three", "none"])
async def test_a_body_of_known_length_arrives_as_it_was_sent(file: File, middleware: Any, chunks: list[bytes]) -> None:
    @get("/")
    async def stream() -> Stream:
        async def body() -> AsyncIterator[bytes]:
            for chunk in chunks:
                yield chunk
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.02)

        return Stream(body(), headers={"content-length": str(sum(map(len, chunks)))})

    app, _ = app_with(config_of(file), stream, middleware=[middleware])
    told = Told()
    await call(app, told)
    assert (told[0]["status"], body_of(told), is_complete(told)) == (200, b"".join(chunks), True)
    assert [one["type"] for one in told].count("http.response.start") == 1


@between
async def test_a_body_whose_last_commit_fails_is_never_completed_by_another_answer(
    pg: Postgres, middleware: Any
) -> None:
    config = config_of(pg)

    @get("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            yield b"aaaaa"
            await asyncio.sleep(0.02)
            await db_session.execute(VIOLATION)

        return Stream(body())

    app, _ = app_with(config, stream, middleware=[middleware])
    told = Told()
    with pytest.raises(BaseException):  # noqa: B017, PT011 - what each middleware makes of it
        await call(app, told)
    assert not (is_complete(told) and b"aaaaa" in body_of(told))
    assert [one["type"] for one in told].count("http.response.start") <= 1
    await clean(pg, config)
    assert pg.held() == []


@between
async def test_a_before_send_handler_hears_each_message_once(file: File, middleware: Any) -> None:
    heard: list[Any] = []

    async def hear(message: Any, scope: Any) -> None:
        heard.append(message.get("status") or message.get("body"))

    @get("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            yield b"0"
            await asyncio.sleep(0.01)
            yield b"1"

        return Stream(body())

    app, _ = app_with(config_of(file, before_send_handler=hear), stream, middleware=[middleware])
    await call(app, Told())
    assert heard == [200, b"0", b"1", b""]


@pytest.mark.parametrize("with_gate", [True, False])
async def test_a_mounted_app_keeps_its_own_before_send_handler(file: File, pg: Postgres, with_gate: bool) -> None:
    config: Any

    async def commits(message: Any, scope: Any) -> None:
        session = scope["state"].get(config.session_scope_key)
        if message["type"] == "http.response.start" and session is not None:
            await session.commit()

    @get("/")
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        return "ok"

    config = config_of(file, before_send_handler=commits)
    child, _ = app_with(config, write)
    parent = Starlette(routes=[Mount("/", app=child)])
    if with_gate:
        Transept(config_of(pg, bind_key="other"), parent)
    told = Told()
    await call(parent, told)
    assert (told[0]["status"], file.held()) == (200, [1])


def test_a_websocket_stream_reads_from_a_cursor_while_another_task_listens(file: File) -> None:
    @websocket_stream("/")
    async def count(db_session: AsyncSession) -> AsyncGenerator[str, None]:
        rows = await db_session.stream_scalars(text("SELECT 1 UNION SELECT 2 UNION SELECT 3"))
        async for number in rows:
            yield str(number)

    app, _ = app_with(config_of(file), count)
    with TestClient(app) as client, client.websocket_connect("/") as socket:
        assert [socket.receive_text() for _ in range(3)] == ["1", "2", "3"]


async def test_a_held_chunk_is_not_a_part_of_the_answer_to_its_failure(pg: Postgres) -> None:
    """Nothing of the body was passed on, so the failure is answered anew; and nothing of that body is in the answer."""
    config = config_of(pg)

    @get("/")
    async def stream(db_session: AsyncSession) -> Stream:
        async def body() -> AsyncIterator[bytes]:
            yield b"aaaaa"
            await db_session.execute(VIOLATION)

        return Stream(body(), headers={"content-length": "5"})

    app, _ = app_with(config, stream, middleware=[Buffered])
    told = Told()
    await call(app, told)
    assert ([one.get("status") for one in told if "status" in one][-1], is_complete(told)) == (500, True)
    assert b"aaaaa" not in body_of(told)
    await clean(pg, config)
    assert pg.held() == []
