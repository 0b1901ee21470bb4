"""What hurts users of request-scoped sessions in Litestar elsewhere, one test for each pain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import httpx
import pytest
from held import COUNT, VIOLATION, Postgres, calling, eventually, http, insert, out_of_pool, post, websocket
from litestar import Litestar, Request, Response, WebSocket, get
from litestar import post as posted
from litestar import websocket as websocket_route
from litestar.background_tasks import BackgroundTask
from litestar.response import Stream
from servers.server import Server
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from transept import ImproperConfigurationError, OutsideScope, Registry
from transept.adapters.asyncpg import AsyncpgConfig
from transept.config import EngineConfig
from transept.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin, Transept
from transept.sql.session import SQLSession

pytestmark = pytest.mark.anyio


def configured(pg: Postgres, pool_size: int = 5, **settings: Any) -> SQLAlchemyAsyncConfig:
    named = {"server_settings": {"application_name": pg.name}}
    options = EngineConfig(pool_size=pool_size, max_overflow=0, pool_timeout=5, connect_args=named)
    settings = {"before_send_handler": "autocommit", **settings}
    return SQLAlchemyAsyncConfig(connection_string=pg.server.url("asyncpg"), engine_config=options, **settings)


def app_of(*handlers: Any, plugin: Any, **settings: Any) -> Litestar:
    return Litestar([*handlers], plugins=[plugin], openapi_config=None, logging_config=None, **settings)


# A commit that fails, and a client that is told of a success


async def test_a_commit_that_fails_is_answered_by_the_apps_handler_for_its_error(pg: Postgres) -> None:
    ran: list[int] = []

    @posted("/")
    async def create(db_session: AsyncSession) -> Response[None]:
        await db_session.execute(insert(1))
        await db_session.execute(VIOLATION)
        return Response(None, status_code=201, background=BackgroundTask(ran.append, 1))

    def conflict(request: Request[Any, Any, Any], error: IntegrityError) -> Response[str]:
        return Response("taken", status_code=409)

    database = configured(pg)
    app = app_of(create, plugin=SQLAlchemyPlugin(database), exception_handlers={IntegrityError: conflict})
    response = await post(app)
    assert (response.status_code, response.text, pg.held(), ran) == (409, "taken", [], [])
    response = await post(app_of(create, plugin=SQLAlchemyPlugin(database)))
    assert (response.status_code, pg.held(), ran, out_of_pool(database)) == (500, [], [], 0)


# An injected session in a body, a background task, a WebSocket


async def test_an_injected_session_may_be_used_in_a_body_and_is_committed_and_given_back(pg: Postgres) -> None:
    database, out = configured(pg, 1), []

    @posted("/")
    async def export(db_session: AsyncSession) -> Stream:
        await db_session.execute(insert(1))

        async def rows() -> AsyncIterator[str]:
            for v in (2, 3):
                out.append(out_of_pool(database))
                await db_session.execute(insert(v))
                yield f"{await db_session.scalar(COUNT)} "

        return Stream(rows)

    async with calling(app_of(export, plugin=SQLAlchemyPlugin(database))) as client:
        assert (await client.post("/")).text == "2 3 "
        assert (await client.post("/")).text == "5 6 "
    assert (pg.held(), out, out_of_pool(database)) == ([1, 1, 2, 2, 3, 3], [0, 0, 0, 0], 0)


async def test_a_background_task_given_the_injected_session_is_told_and_holds_no_connection(pg: Postgres) -> None:
    database, told = configured(pg, 1), []

    async def mail(session: AsyncSession) -> None:
        try:
            await session.execute(insert(2))
        except OutsideScope as error:
            told.append(str(error))

    @posted("/")
    async def create(db_session: AsyncSession) -> Response[None]:
        await db_session.execute(insert(1))
        return Response(None, status_code=201, background=BackgroundTask(mail, db_session))

    async with calling(app_of(create, plugin=SQLAlchemyPlugin(database))) as client:
        for _ in range(3):  # more often than there are connections
            assert (await client.post("/")).status_code == 201
    assert (pg.held(), len(told), out_of_pool(database)) == ([1, 1, 1], 3, 0)
    assert "POST /" in told[0]


async def test_a_websocket_with_an_injected_session_keeps_each_message_and_holds_nothing(pg: Postgres) -> None:
    database, between = configured(pg, 1), []

    @websocket_route("/")
    async def chat(socket: WebSocket[Any, Any, Any], db_session: AsyncSession) -> None:
        await socket.accept()
        async for v in socket.iter_json():
            await db_session.execute(insert(v))
            await socket.send_json(await db_session.scalar(COUNT))
            between.append((pg.held(), out_of_pool(database)))

    app = app_of(chat, plugin=SQLAlchemyPlugin(database))
    await websocket(app, 1, 2)
    assert (between, pg.held()) == ([([1], 0), ([1, 2], 0)], [1, 2])


async def test_a_request_that_is_cancelled_before_its_response_leaves_no_session_open(pg: Postgres) -> None:
    database, waits = configured(pg, 1), asyncio.Event()

    @posted("/")
    async def create(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        waits.set()
        await asyncio.sleep(5)

    app = app_of(create, plugin=SQLAlchemyPlugin(database))
    task = asyncio.ensure_future(http(app, [], method="POST"))
    await waits.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert (pg.held(), out_of_pool(database), pg.in_transaction()) == ([], 0, 0)


# Keys


async def test_engines_are_disposed_at_shutdown_whatever_their_keys_are(pg: Postgres) -> None:
    first = configured(pg, engine_dependency_key="first_db", session_dependency_key="first")
    second = configured(pg, bind_key="second", engine_app_state_key="elsewhere")

    @get("/")
    async def both(first: AsyncSession, second_session: AsyncSession, first_db: AsyncEngine) -> int:
        assert first.bind is first_db
        return int(await first.scalar(COUNT) or 0) + int(await second_session.scalar(COUNT) or 0)

    app = app_of(both, plugin=SQLAlchemyPlugin([first, second]))
    async with app.lifespan(), calling(app) as client:
        assert (await client.get("/")).status_code == 200
        assert pg.backends() == 2
    assert await eventually(lambda: pg.backends() == 0)


async def test_keys_are_those_of_an_app_and_not_of_the_process(pg: Postgres) -> None:
    @get("/", sync_to_thread=False)
    def endpoint(db_session: AsyncSession, db_engine: AsyncEngine, request: Request[Any, Any, Any]) -> list[bool]:
        return [db_session.bind is db_engine, request.app.state.db_engine is db_engine]

    for _ in range(3):
        database = configured(pg)
        app = app_of(endpoint, plugin=SQLAlchemyPlugin(database))
        async with app.lifespan(), calling(app) as client:
            assert (await client.get("/")).json() == [True, True]
            assert app.state.session_maker_class is not None
        assert database.session_scope_key == "_sqlalchemy_db_session"


def test_two_databases_that_claim_one_key_are_named_when_the_app_is_made(pg: Postgres) -> None:
    first, second = configured(pg), configured(pg, bind_key="second", session_dependency_key="db_session")
    with pytest.raises(ImproperConfigurationError, match=r"'default'.*'second'.*'db_session'"):
        app_of(plugin=SQLAlchemyPlugin([first, second]))


# Modes


@pytest.mark.parametrize("mode", ["autocommit_include_redirects", "autocommit_include_redirect"])
async def test_the_redirect_mode_may_be_spelled_either_way(pg: Postgres, mode: str) -> None:
    @posted("/", status_code=303)
    async def create(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))

    assert (await post(app_of(create, plugin=SQLAlchemyPlugin(configured(pg, before_send_handler=mode))))).is_redirect
    assert pg.held() == [1]


@pytest.mark.parametrize("wrong", ["autocomit", "manuel", 1])
def test_a_mode_that_there_is_not_is_an_error_before_any_request(pg: Postgres, wrong: Any) -> None:
    with pytest.raises(ImproperConfigurationError, match=rf"before_send_handler.*{wrong!r}.*'autocommit'"):
        configured(pg, before_send_handler=wrong)


# A handler of the app's own that looks for the session when the response starts


async def test_a_before_send_handler_finds_the_injected_session_before_it_is_settled(pg: Postgres) -> None:
    async def audited(message: Any, scope: Any) -> None:
        session = scope["state"].get("_sqlalchemy_db_session")
        if session is not None and message["type"] == "http.response.start":
            await session.execute(insert(2))

    @posted("/", status_code=201)
    async def create(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))

    database = configured(pg, before_send_handler=audited, commit_mode="autocommit")
    assert (await post(app_of(create, plugin=SQLAlchemyPlugin(database)))).status_code == 201
    assert pg.held() == [1, 2]


# Raw drivers: injected, and then committed or not by the status; nothing for those who do not ask


def registered(server: Server) -> Registry:
    """With one connection in its pool."""
    registry = Registry()
    settings = {"litestar": {"commit_mode": "autocommit"}}
    registry.add_config(
        AsyncpgConfig(pool_config={"dsn": server.dsn, "min_size": 0, "max_size": 1}, extension_config=settings)
    )
    return registry


async def test_an_injected_session_of_a_raw_driver_is_kept_by_the_status(pg: Postgres) -> None:
    @posted("/", status_code=201)
    async def create(db_session: SQLSession, request: Request[Any, Any, Any]) -> Response[None]:
        status = int(request.query_params["status"])
        await db_session.execute("INSERT INTO held VALUES ($1)", status)
        if status == 500:
            raise RuntimeError("boom")
        return Response(None, status_code=status)

    app = app_of(create, plugin=Transept(registered(pg.server)))
    async with app.lifespan(), calling(app) as client:
        told = [(await client.post(f"/?status={status}")).status_code for status in (201, 303, 404, 500)]
    assert (told, pg.held()) == ([201, 303, 404, 500], [201])


async def test_an_exhausted_pool_does_not_stop_requests_that_use_no_injected_session(pg: Postgres) -> None:
    release, used = asyncio.Event(), asyncio.Event()

    @get("/slow")
    async def slow(db_session: SQLSession) -> None:
        await db_session.execute("UPDATE held SET v = v")
        used.set()
        await release.wait()

    @get("/ping", sync_to_thread=False)
    def ping(db_session: SQLSession) -> str:
        return "pong"

    app = app_of(slow, ping, plugin=Transept(registered(pg.server)))
    async with app.lifespan(), calling(app) as client:
        busy = asyncio.ensure_future(client.get("/slow"))
        await used.wait()
        async with asyncio.timeout(2):
            told = [cast("httpx.Response", await client.get(path)).status_code for path in ("/ping", "/nowhere")]
        release.set()
        assert (told, (await busy).status_code) == ([200, 404], 200)
