"""Two hundred requests at once on five connections, half of which fail, and a database that cannot be reached."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from contract.engines.mariadb import MariaDB
from contract.engines.postgres import Postgres
from contract.engines.sqlite import SQLiteFile, SQLiteMemory
from contract.families.raw_aiosqlite import RawAiosqlite
from contract.families.raw_asyncpg import RawAsyncpg
from contract.families.raw_mysql import RawAsyncmy, RawPyMySQL
from contract.families.raw_psycopg import RawPsycopgAsync, RawPsycopgSync
from contract.families.raw_sqlite3 import RawSqlite3
from httpx import ASGITransport, AsyncClient
from servers.found import needed
from servers.ports import free
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from transept.adapters.asyncpg import AsyncpgConfig
from transept.errors import DatabaseUnavailable
from transept.extensions.starlette import Transept

FAMILIES = [RawAsyncpg, RawPsycopgAsync, RawPsycopgSync, RawAiosqlite, RawSqlite3, RawAsyncmy, RawPyMySQL]
CELLS = [(family, engine) for family in FAMILIES for engine in family.drivers]
REQUESTS = 200


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    makes = {
        "sqlite": SQLiteFile,
        "memory": SQLiteMemory,
        "postgres": lambda: Postgres(needed(request.config, "postgres")),
        "mariadb": lambda: MariaDB(needed(request.config, "mariadb")),
    }
    made: Any = makes[request.param]()
    made.reset()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("family", "engine"),
    [pytest.param(family(), engine, id=f"{family.name}-{engine}") for family, engine in CELLS],
    indirect=["engine"],
)
def test_the_books_balance_after_many_requests_of_which_half_fail(family: Any, engine: Any) -> None:
    database = family.database(engine, family.drivers[engine.name][0], None, commit_mode="autocommit", pool_timeout=50)
    most = 0

    def watch() -> None:
        nonlocal most
        most = max(most, family.checked_out(database))

    async def awaiting(request: Request) -> Response:
        session = db.get_session(request)
        number = int(request.path_params["number"])
        await session.execute("INSERT INTO held VALUES (?)", number)
        watch()
        assert await session.select_value("SELECT count(*) FROM held WHERE v = ?", number) == 1
        return ending(number)

    def blocking(request: Request) -> Response:
        session = db.get_session(request)
        number = int(request.path_params["number"])
        session.execute("INSERT INTO held VALUES (?)", number)
        watch()
        assert session.select_value("SELECT count(*) FROM held WHERE v = ?", number) == 1
        return ending(number)

    def ending(number: int) -> Response:
        if number % 4 == 1:
            raise ValueError(number)
        return JSONResponse({}, status_code=409 if number % 4 == 3 else 201)

    endpoint: Any = blocking if family.blocking else awaiting
    app = Starlette(routes=[Route("/{number}", endpoint, methods=["POST"])])
    db = Transept(database, app)

    async def all_of_them() -> list[int]:
        transport = ASGITransport(app=app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), AsyncClient(transport=transport, base_url="http://test") as client:
            answers = await asyncio.gather(*(client.post(f"/{number}") for number in range(REQUESTS)))
            assert family.checked_out(database) == 0
            assert engine.open_transactions() == 0
            return [answer.status_code for answer in answers]

    statuses = asyncio.run(all_of_them())
    assert statuses == [(201, 500, 201, 409)[number % 4] for number in range(REQUESTS)]
    assert engine.held() == [number for number in range(REQUESTS) if number % 2 == 0]
    assert 1 <= most <= 5


def unreachable(**settings: Any) -> AsyncpgConfig:
    port = free()
    return AsyncpgConfig(
        pool_config={"dsn": f"postgresql://postgres@127.0.0.1:{port}/x"}, commit_mode="autocommit", **settings
    )


async def read(request: Request) -> Response:
    await request.state.db_session.execute("SELECT 1")
    return Response("read")


async def nothing(request: Request) -> Response:
    return Response("nothing")


def test_a_database_that_cannot_be_reached_is_answered_503_and_others_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    app = Starlette(routes=[Route("/read", read), Route("/nothing", nothing)])
    Transept(unreachable(), app)
    with TestClient(app) as client:
        assert client.get("/nothing").text == "nothing"
        answer = client.get("/read")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "cannot be reached" in answer.text
    assert "GET /read" in caplog.text


def test_the_apps_own_handler_answers_first() -> None:
    def teapot(request: Request, error: Exception) -> Response:
        return Response(type(error).__name__, status_code=418)

    app = Starlette(routes=[Route("/read", read)], exception_handlers={DatabaseUnavailable: teapot})
    Transept(unreachable(), app)
    with TestClient(app) as client:
        answer = client.get("/read")
    assert (answer.status_code, answer.text) == (418, "DatabaseUnavailable")


def test_start_up_fails_where_that_was_asked_for() -> None:
    app = Starlette(routes=[Route("/nothing", nothing)])
    Transept(unreachable(eager=True), app)
    with pytest.raises(DatabaseUnavailable, match="'default'"), TestClient(app):
        pass
