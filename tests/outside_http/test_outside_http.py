"""Units of work where there is no HTTP request, or where it is over; see docs/concepts/outside-http.md."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from held import COUNT, File, Postgres, calling, eventually, insert, out_of_pool, websocket
from starlette.applications import Starlette
from starlette.background import BackgroundTasks
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from transept import (
    CommitFailed,
    OutsideScope,
    atomic_db_session,
    db_session,
    in_new_unit,
    is_context_initiated,
    run_in_new_ctx,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.extensions.starlette import add_starlette_http_db_session_middleware

pytestmark = pytest.mark.anyio


class Lost(Exception):
    pass


class Work:
    """A database, and functions that do not know where they run."""

    def __init__(self, tables: File | Postgres) -> None:
        self.tables = tables
        self.database = tables.config()

    async def write(self, v: int, *, fails: bool = False) -> None:
        session = await db_session(self.database)
        await session.execute(insert(v))
        if fails:
            raise Lost

    async def count(self) -> int:
        return int(await (await db_session(self.database)).scalar(COUNT))

    def held(self) -> list[int]:
        return self.tables.held()

    def connections(self) -> int:
        return out_of_pool(self.database)

    def app(self, *routes: Any, **options: Any) -> Starlette:
        app = Starlette(routes=routes, **options)
        add_starlette_http_db_session_middleware(app, databases=[self.database])
        return app


@pytest.fixture(params=["sqlite", "postgres"])
async def work(request: pytest.FixtureRequest) -> AsyncIterator[Work]:
    """After each test nothing is held."""
    work = Work(request.getfixturevalue("file" if request.param == "sqlite" else "pg"))
    yield work
    assert await eventually(lambda: work.connections() == 0)
    await work.database.stop()


async def test_each_message_of_a_websocket_is_a_unit_and_nothing_is_held_between_two(work: Work) -> None:
    seen: list[Any] = []

    async def endpoint(socket: Any) -> None:
        await socket.accept()
        async for v in socket.iter_json():
            assert work.connections() == 0
            await work.write(v)
            assert work.connections() == 1
            await socket.send_json(v)
            seen.append(work.held())

    await websocket(work.app(WebSocketRoute("/", endpoint)), 1, 2, 3)
    assert seen == [[1], [1, 2], [1, 2, 3]]


@pytest.mark.parametrize("kind", ["unit_of_work", "atomic_db_session", "requires_new", "in_new_unit"])
async def test_a_block_in_a_websocket_is_kept_or_lost_as_a_whole_whatever_is_sent_inside(work: Work, kind: str) -> None:
    blocks: dict[str, Any] = {
        "unit_of_work": unit_of_work,
        "atomic_db_session": lambda: atomic_db_session(work.database),
        "requires_new": lambda: transaction("requires_new"),
    }

    async def endpoint(socket: Any) -> None:
        await socket.accept()

        async def half_and_half(v: int) -> None:
            await work.write(v)
            await socket.send_json("half")
            await work.write(v + 1, fails=v < 0)

        async for v in socket.iter_json():
            try:
                if kind == "in_new_unit":
                    await in_new_unit(half_and_half)(v)
                else:
                    async with blocks[kind]():
                        await half_and_half(v)
            except Lost:
                await socket.send_json("lost")
            else:
                await socket.send_json("kept")
                assert v in work.held()
            assert work.connections() == 0

    told = await websocket(work.app(WebSocketRoute("/", endpoint)), 1, -5, 3)
    assert [one["text"] for one in told[1:]] == ['"half"', '"kept"', '"half"', '"lost"', '"half"', '"kept"']
    assert work.held() == [1, 2, 3, 4]


async def test_an_error_that_left_a_part_of_a_message_cannot_be_swallowed(work: Work) -> None:
    async def endpoint(socket: Any) -> None:
        await socket.accept()
        async for v in socket.iter_json():
            try:
                async with transaction():
                    await work.write(v, fails=True)
            except Lost:
                pass

    with pytest.raises(CommitFailed):
        await websocket(work.app(WebSocketRoute("/", endpoint)), 1)
    assert work.held() == []


async def test_background_tasks_share_a_unit_unless_they_have_their_own(work: Work) -> None:
    """The third one raises, and takes the first with it; the request and the second are kept."""

    async def endpoint(request: Any) -> Response:
        tasks = BackgroundTasks()
        tasks.add_task(in_new_unit(work.write), 2)
        tasks.add_task(work.write, 3)
        tasks.add_task(work.write, 4, fails=True)
        await work.write(1)
        return JSONResponse("kept", background=tasks)

    async with calling(work.app(Route("/", endpoint, methods=["POST"]))) as client:
        assert (await client.post("/")).status_code == 200
    assert work.held() == [1, 2]


async def test_a_task_that_outlives_its_request_needs_a_unit_of_its_own(work: Work) -> None:
    answered = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await answered.wait()
        assert not is_context_initiated()
        with pytest.raises(OutsideScope, match="in_new_unit"):
            await work.write(2)
        await run_in_new_ctx(work.write, 3)
        async with unit_of_work():
            await work.write(4)

    async def endpoint(request: Any) -> Response:
        await work.write(1)
        tasks.append(asyncio.create_task(later()))
        return Response()

    async with calling(work.app(Route("/", endpoint, methods=["POST"]))) as client:
        assert (await client.post("/")).status_code == 200
    answered.set()
    await asyncio.gather(*tasks)
    assert work.held() == [1, 3, 4]


async def test_a_lifespan_has_its_units_and_gives_none_to_requests(work: Work) -> None:
    """Even where its block stays open while the app serves, a request has a unit of its own."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with unit_of_work():
            await work.write(1)
        assert work.held() == [1]
        async with unit_of_work():
            yield
            await work.write(3)

    async def endpoint(request: Any) -> Response:
        await work.write(2)
        return Response()

    app = work.app(Route("/", endpoint, methods=["POST"]), lifespan=lifespan)
    async with app.router.lifespan_context(app), calling(app) as client:
        assert (await client.post("/")).status_code == 200
        assert work.held() == [1, 2]
    assert work.held() == [1, 2, 3]


COMMAND = """
import asyncio, sys
from sqlalchemy import text
from transept import db_session, in_new_unit, sync_db_session, unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

url, blocking_url, colour, *values = sys.argv[1:]
insert = text("INSERT INTO held VALUES (:v)")

async def main():
    session = await db_session(SQLAlchemyAsyncConfig(connection_string=url))
    for v in values:
        await session.execute(insert, {"v": int(v)})
        if v == "13":
            sys.exit("unlucky")

def blocking():
    session = sync_db_session(archive)
    for v in values:
        session.execute(insert, {"v": int(v)})
        if v == "13":
            sys.exit("unlucky")

if colour == "async":
    asyncio.run(in_new_unit(main)())
else:
    archive = SQLAlchemySyncConfig(connection_string=blocking_url)
    try:
        with unit_of_work():
            blocking()
    finally:
        archive.get_engine().dispose()
"""


@pytest.mark.parametrize("colour", ["async", "blocking"])
async def test_a_command_keeps_its_work_unless_it_exits_with_an_error(work: Work, colour: str) -> None:
    tables = work.tables
    urls = (
        [tables.url(), tables.url("pysqlite")]
        if isinstance(tables, File)
        else [tables.server.url("asyncpg"), tables.server.url("psycopg")]
    )

    def run(*values: str) -> tuple[int, str]:
        command = [sys.executable, "-W", "error", "-c", COMMAND, *urls, colour, *values]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    assert run("1", "2") == (0, "")
    assert run("3", "13") == (1, "unlucky\n")
    assert work.held() == [1, 2]


async def test_a_job_that_runs_again_and_again_holds_nothing_in_between(work: Work) -> None:
    """A round that fails is lost alone."""
    failures: list[int] = []
    for v in range(6):
        try:
            await run_in_new_ctx(work.write, v, fails=v % 3 == 0)
        except Lost:
            failures.append(v)
        assert (work.connections(), is_context_initiated()) == (0, False)
    assert (failures, work.held()) == ([0, 3], [1, 2, 4, 5])


async def test_a_plain_job_runs_in_a_thread(work: Work) -> None:
    blocking = work.tables.sync_config()

    def job(v: int) -> int:
        sync_db_session(blocking).execute(insert(v))
        return v

    assert await run_in_new_ctx(job, 1) == 1
    assert work.held() == [1]


async def test_the_tasks_of_a_group_have_a_unit_each(work: Work) -> None:
    """One that fails cancels the others; what had been done by then is kept."""
    begun = asyncio.Event()

    async def slow(v: int) -> None:
        await begun.wait()
        await work.write(v)
        await asyncio.sleep(60)

    async def failing() -> None:
        while work.held() != [1, 2]:
            await asyncio.sleep(0.01)
        begun.set()
        while not work.connections():
            await asyncio.sleep(0.01)
        raise Lost

    async def request() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(in_new_unit(work.write)(1))
            tasks.create_task(in_new_unit(work.write)(2))
            tasks.create_task(in_new_unit(slow)(3))
            tasks.create_task(in_new_unit(failing)())

    with pytest.raises(ExceptionGroup) as caught:
        await asyncio.wait_for(request(), 20)
    assert [type(one) for one in caught.value.exceptions] == [Lost]
    assert work.held() == [1, 2]


async def test_a_group_in_a_request_that_is_not_kept_has_kept_its_own_work(work: Work) -> None:
    async def endpoint(request: Any) -> Response:
        assert await work.count() == 0
        async with asyncio.TaskGroup() as tasks:
            for v in range(4):
                tasks.create_task(in_new_unit(work.write)(v))
        return Response(status_code=409)

    async with calling(work.app(Route("/", endpoint))) as client:
        assert (await client.get("/")).status_code == 409
    assert work.held() == [0, 1, 2, 3]
