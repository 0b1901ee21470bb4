"""Blocks of sessions, cancelled and crossed, on a raw database in a unit of work."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from contract.engines.mariadb import MariaDB
from contract.engines.postgres import Postgres
from contract.engines.sqlite import SQLiteFile
from servers.found import needed
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from transept import CommitFailed, UsageError, transaction, unit_of_work
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.psycopg import PsycopgAsyncConfig
from transept.extensions.starlette import Transept

KINDS = ["aiosqlite", "asyncpg", "asyncpg-nothing-saved", "psycopg", "asyncmy"]


class Boom(Exception):
    pass


class Place:
    def __init__(self, engine: Any, config: Any) -> None:
        self.engine = engine
        self.config = config

    def held(self) -> list[int]:
        return list(self.engine.held())


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind: str = request.param
    engine: Any
    if kind == "aiosqlite":
        engine = SQLiteFile()
        config: Any = AiosqliteConfig(pool_config=engine.options, commit_mode="autocommit")
    elif kind == "asyncmy":
        engine = MariaDB(needed(request.config, "mariadb"))
        config = AsyncmyConfig(pool_config={"dsn": engine.url("asyncmy")}, commit_mode="autocommit")
    else:
        engine = Postgres(needed(request.config, "postgres"))
        options: dict[str, Any] = {"pool_config": {"dsn": engine.dsn()}, "commit_mode": "autocommit"}
        if kind == "psycopg":
            config = PsycopgAsyncConfig(**options)
        else:
            config = AsyncpgConfig(**options, bare_reads=kind == "asyncpg")
    engine.reset()
    yield Place(engine, config)
    engine.close()


def status_of(place: Place, endpoint: Any, method: str = "POST") -> int:
    app = Starlette(routes=[Route("/", endpoint, methods=[method])])
    Transept(place.config, app)
    with TestClient(app, raise_server_exceptions=False) as client:
        return client.request(method, "/").status_code


@pytest.mark.anyio
async def test_an_end_that_is_cancelled_runs_to_its_end(place: Place) -> None:
    async def work() -> None:
        async with unit_of_work() as unit:
            session = unit.session(place.config)
            await session.execute("INSERT INTO held VALUES (1)")
            ending = asyncio.ensure_future(session.commit())
            await asyncio.sleep(0)
            ending.cancel()
            with suppress(asyncio.CancelledError):
                await ending
            await session.execute("INSERT INTO held VALUES (2)")
            raise Boom

    with suppress(Boom):
        await work()
    await place.config.stop()
    assert place.held() in ([1], [])
    assert place.engine.open_transactions() == 0


def test_a_block_in_a_body_is_kept_as_a_whole_or_not_at_all(place: Place) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session

        async def body() -> AsyncIterator[bytes]:
            with suppress(Boom):
                async with session.transaction():
                    await session.execute("INSERT INTO held VALUES (1)")
                    yield b"1"
                    await session.execute("INSERT INTO held VALUES (2)")
                    raise Boom
            async with session.transaction():
                await session.execute("INSERT INTO held VALUES (3)")
                yield b"3"
                assert 3 not in place.held()

        return StreamingResponse(body())

    assert status_of(place, endpoint) == 200
    assert place.held() == [3]


def test_a_block_over_two_messages_is_one(place: Place) -> None:
    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        session = websocket.state.db_session
        with suppress(Boom):
            async with session.transaction():
                await session.execute("INSERT INTO held VALUES (1)")
                await websocket.receive_text()
                await session.execute("INSERT INTO held VALUES (2)")
                raise Boom
        await websocket.send_text("undone")
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    Transept(place.config, app)
    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        websocket.send_text("go on")
        assert websocket.receive_text() == "undone"
    assert place.held() == []


def test_what_failed_inside_a_part_is_not_committed_by_hand(place: Place) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        with suppress(Boom):
            async with transaction():
                await session.execute("INSERT INTO held VALUES (1)")
                raise Boom
        with pytest.raises(CommitFailed):
            await session.commit()
        return Response(status_code=409)

    assert status_of(place, endpoint) == 409
    assert place.held() == []


def test_a_block_inside_a_units_block_is_a_part_of_it(place: Place) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        with suppress(Boom):
            async with transaction("nested"):
                async with session.transaction():
                    await session.execute("INSERT INTO held VALUES (1)")
                raise Boom
        await session.execute("INSERT INTO held VALUES (2)")
        return Response(status_code=201)

    assert status_of(place, endpoint) == 201
    assert place.held() == [2]


def test_a_stream_that_is_left_half_read_stops_nothing(place: Place) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute("INSERT INTO held VALUES (1)")
        with suppress(Boom):
            async with session.transaction():
                await session.execute("INSERT INTO held VALUES (2)")
                stream = session.stream("SELECT v FROM held UNION ALL SELECT 5 UNION ALL SELECT 6", chunk_size=1)
                await anext(stream)
                raise Boom
        async for _ in session.stream("SELECT v FROM held UNION ALL SELECT 5", chunk_size=1):
            break
        await session.execute("INSERT INTO held VALUES (3)")
        return Response(status_code=201)

    assert status_of(place, endpoint) == 201
    assert place.held() == [1, 3]


def test_the_error_that_leaves_a_block_is_the_apps_own(tmp_path: Path) -> None:
    path = tmp_path / "held.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE held (v INTEGER PRIMARY KEY)")
    config = AiosqliteConfig(pool_config={"database": str(path)}, commit_mode="autocommit")
    caught: list[str] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute("INSERT INTO held VALUES (1)")
        try:
            async with session.transaction():
                await session.execute("INSERT OR ROLLBACK INTO held VALUES (1)")
        except Exception as error:
            caught.append(type(error).__name__)
        return Response(status_code=201)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    Transept(config, app)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 500
    assert caught == ["UniqueViolationError"]


@pytest.mark.anyio
async def test_commit_inside_a_block_is_refused(place: Place) -> None:
    async with unit_of_work() as unit:
        session = unit.session(place.config)
        async with session.transaction():
            await session.execute("INSERT INTO held VALUES (1)")
            with pytest.raises(UsageError, match="inside a block"):
                await session.commit()
    await place.config.stop()
    assert place.held() == [1]


@pytest.mark.parametrize("mode", ["", "NO_BACKSLASH_ESCAPES"])
@pytest.mark.parametrize("value", [b"\\', CURRENT_USER() AS leaked -- ", b"\x00'\\\"\n\xff"])
@pytest.mark.anyio
async def test_bytes_are_bytes_whatever_the_servers_mode(
    request: pytest.FixtureRequest, mode: str, value: bytes
) -> None:
    engine = MariaDB(needed(request.config, "mariadb"))
    config = AsyncmyConfig(pool_config={"dsn": engine.url("asyncmy")})
    async with unit_of_work() as unit:
        session = unit.session(config)
        await session.execute("SET SESSION sql_mode = ?", mode)
        for one in (value, bytearray(value), memoryview(value)):
            assert await session.select("SELECT ? AS v", one) == [{"v": value}]
    await config.stop()
    engine.close()


@pytest.mark.anyio
async def test_a_method_of_the_driver_that_ends_the_transaction_is_noticed(place: Place) -> None:
    ways: dict[str, Any] = {
        "aiosqlite.core": lambda connection: connection.executescript("INSERT INTO held VALUES (9)"),
        "asyncpg.connection": lambda connection: connection.fetch("ROLLBACK"),
        "psycopg": lambda connection: connection.set_autocommit(True),
        "asyncmy.connection": lambda connection: connection.query("COMMIT"),
    }
    end = ways[place.config.driver_connection.__module__]
    with suppress(CommitFailed, Boom):
        async with unit_of_work() as unit:
            session = unit.session(place.config)
            await session.execute("INSERT INTO held VALUES (1)")
            with suppress(Exception):
                await end(unit.connection(place.config))
            await session.execute("INSERT INTO held VALUES (2)")
            raise Boom
    await place.config.stop()
    assert 2 not in place.held()
    assert place.engine.open_transactions() == 0


def test_blocks_of_two_tasks_that_are_crossed_keep_nothing(place: Place) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        begun, both, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def first() -> None:
            try:
                async with session.transaction():
                    await session.execute("INSERT INTO held VALUES (1)")
                    begun.set()
                    await both.wait()
            finally:
                ended.set()

        async def second() -> None:
            await begun.wait()
            async with session.transaction():
                await session.execute("INSERT INTO held VALUES (2)")
                both.set()
                await ended.wait()
                raise Boom

        outcomes = await asyncio.gather(first(), second(), return_exceptions=True)
        assert [type(one) for one in outcomes] == [UsageError, Boom]
        return Response(status_code=201)

    assert status_of(place, endpoint) == 500
    assert place.held() == []


@pytest.mark.anyio
async def test_only_execute_may_end_the_transaction(place: Place) -> None:
    async with unit_of_work() as unit:
        session = unit.session(place.config)
        await session.execute("INSERT INTO held VALUES (1)")
        for text in ("COMMIT", "ROLLBACK"):
            with pytest.raises(UsageError, match="leave out"):
                await session.execute_many(text, [()])
            with pytest.raises(UsageError, match="leave out"):
                await anext(session.stream(text))
        assert place.held() == []
    await place.config.stop()
    assert place.held() == [1]


def test_a_block_that_cannot_be_kept_is_undone_alone(place: Place) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute("INSERT INTO held VALUES (1)")
        with suppress(Exception):
            async with session.transaction():
                await session.execute("INSERT INTO held VALUES (2)")
                with suppress(Exception):
                    await session.execute("SELECT nonsense")
        await session.rollback()
        await session.execute("INSERT INTO held VALUES (3)")
        return Response(status_code=201)

    assert status_of(place, endpoint) == 201
    assert place.held() == [3]
