"""Sessions and connections of raw drivers by `Depends`."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from held import File, calling, get, insert, post, websocket
from pydantic import BaseModel
from raw_databases import DRIVERS, RawDatabase, raw_database
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.testclient import TestClient

from transept import DatabaseUnavailable, ImproperConfigurationError, Registry, current_unit
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.config import FastAPIConfig
from transept.errors import UniqueViolationError
from transept.extensions.fastapi import Transept
from transept.sql.connection import Connection
from transept.sql.session import BlockingSQLSession, SQLSession

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO held VALUES (?)"


class User(BaseModel):
    id: int
    email: str


@pytest.fixture(params=DRIVERS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database(request.param, request, tmp_path, "held")


@pytest.fixture
def pg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("asyncpg", request, tmp_path, "held")


@pytest.fixture
def lite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("aiosqlite", request, tmp_path, "held")


async def test_session_and_connection_are_dependencies_of_one_transaction(raw: RawDatabase) -> None:
    app = FastAPI()
    db = Transept(raw.config(), app)

    @app.post("/{status}")
    async def write(
        status: int,
        session: Annotated[SQLSession, Depends(db.provide_session())],
        connection: Annotated[Connection, Depends(db.provide_connection())],
    ) -> list[Any]:
        assert (type(session), type(connection)) == (SQLSession, Connection)
        await session.execute(INSERT, status)
        cursor = await connection.execute("SELECT v FROM held")
        if status != 200:
            raise HTTPException(status)
        return await cursor.fetchall()

    async with calling(app) as client:
        assert (await client.post("/409")).status_code == 409
        assert (await client.post("/200")).json() == [[200]]
    assert raw.held() == [200]


async def test_they_are_the_same_objects_by_depends_by_state_by_request_and_by_unit(raw: RawDatabase) -> None:
    app = FastAPI()
    config = raw.config()
    db = Transept(config, app)

    @app.get("/")
    async def look(
        request: Request,
        one: Annotated[SQLSession, Depends(db.provide_session())],
        two: Annotated[SQLSession, Depends(db.provide_session("db_session"))],
        connection: Annotated[Connection, Depends(db.provide_connection())],
        again: Annotated[Connection, Depends(db.provide_connection(config), use_cache=False)],
    ) -> list[bool]:
        return [
            one is two is request.state.db_session is db.get_session(request) is current_unit().session(),
            connection is again is request.state.db_connection is db.get_connection(request),
        ]

    assert (await get(app)).json() == [True, True]


async def test_rows_are_models_of_the_response(raw: RawDatabase) -> None:
    app = FastAPI()
    db = Transept(raw.config(), app)
    raw.make("users")
    raw.sees("INSERT INTO users (email) VALUES ('a@example.com')")

    @app.get("/")
    async def users(session: Annotated[SQLSession, Depends(db.provide_session())]) -> list[User]:
        return await session.select("SELECT id, email FROM users", schema_type=User)

    assert (await get(app)).json() == [{"id": 1, "email": "a@example.com"}]


async def test_an_exception_handler_of_the_app_answers_a_violation(raw: RawDatabase) -> None:
    raw.sees("CREATE UNIQUE INDEX held_once ON held (v)")
    app = FastAPI()
    db = Transept(raw.config(), app)

    @app.exception_handler(UniqueViolationError)
    async def conflict(request: Request, error: UniqueViolationError) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse(error.database, 409)

    @app.post("/")
    async def write(session: Annotated[SQLSession, Depends(db.provide_session())]) -> None:
        await session.execute(INSERT, 1)
        await session.execute(INSERT, 1)

    response = await post(app)
    assert (response.status_code, response.json(), raw.held()) == (409, "default", [])


@pytest.mark.parametrize("by", ["bind_key", "session_key", "config"])
async def test_two_raw_databases_by_depends(pg: RawDatabase, lite: RawDatabase, by: str) -> None:
    first, second = pg.config(), lite.config(bind_key="second", session_key="other")
    keys: Any = {"bind_key": ("default", "second"), "session_key": ("db_session", "other"), "config": (first, second)}
    app = FastAPI()
    db = Transept([first, second], app)

    @app.post("/")
    async def write(
        one: Annotated[SQLSession, Depends(db.provide_session(keys[by][0]))],
        two: Annotated[Connection, Depends(db.provide_connection(keys[by][1]))],
    ) -> None:
        await one.execute(INSERT, 1)
        await two.execute(INSERT, 2)

    assert (await post(app)).status_code == 200
    assert (pg.held(), lite.held()) == ([1], [2])


async def test_sqlalchemy_and_a_raw_database_by_depends_are_settled_together(raw: RawDatabase, file: File) -> None:
    app = FastAPI()
    db = Transept([file.config(), raw.config(bind_key="raw")], app)

    @app.post("/{status}")
    async def write(
        status: int,
        orm: Annotated[AsyncSession, Depends(db.provide_async_session())],
        sql: Annotated[SQLSession, Depends(db.provide_session("raw"))],
    ) -> None:
        await orm.execute(insert(status))
        await sql.execute(INSERT, status)
        if status != 200:
            raise HTTPException(status)

    async with calling(app) as client:
        for status in (400, 200):
            assert (await client.post(f"/{status}")).status_code == status
    assert (file.held(), raw.held()) == ([200], [200])


async def test_a_raw_database_is_no_async_sqlalchemy_database(pg: RawDatabase) -> None:
    db = Transept(pg.config())
    with pytest.raises(ImproperConfigurationError, match=r"Expected an async config, but got AsyncpgConfig"):
        db.provide_async_session()


def test_a_blocking_raw_session_is_for_plain_endpoints(tmp_path: Path) -> None:
    app = FastAPI()
    db = Transept(SqliteConfig(pool_config={"database": str(tmp_path / "app.db")}, commit_mode="autocommit"), app)

    @app.post("/")
    def write(session: Annotated[BlockingSQLSession, Depends(db.provide_session())]) -> int:
        session.execute("CREATE TABLE IF NOT EXISTS held (v integer)")
        session.execute(INSERT, 1)
        return session.select_value("SELECT count(*) FROM held", value_type=int)

    with TestClient(app) as client:
        assert [client.post("/").json() for _ in range(2)] == [1, 2]


async def test_a_websocket_has_a_unit_for_each_message(raw: RawDatabase) -> None:
    app = FastAPI()
    db = Transept(raw.config(), app)

    @app.websocket("/")
    async def serve(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            v = await socket.receive_json()
            await db.get_session(socket).execute(INSERT, v)
            if v < 0:
                raise ValueError(v)
            await socket.send_json(v)
            assert raw.held()[-1] == v

    with pytest.raises(ValueError, match="-1"):
        await websocket(app, 1, 2, -1)
    assert raw.held() == [1, 2]


async def test_provide_session_of_the_registry_is_independent_of_the_request(raw: RawDatabase) -> None:
    app = FastAPI()
    registry = Registry()
    config = registry.add_config(raw.config(commit_mode="manual"))
    db = Transept(registry, app)

    @app.post("/")
    async def write(session: Annotated[SQLSession, Depends(db.provide_session())]) -> None:
        async with registry.provide_session(config) as own:
            assert own is not session
            await own.execute(INSERT, 2)
        raise HTTPException(400)

    assert (await post(app)).status_code == 400
    assert raw.held() == [2]


async def test_a_dependency_is_replaced_in_tests(pg: RawDatabase) -> None:
    app = FastAPI()
    db = Transept(pg.config(), app)

    @app.get("/")
    async def look(
        session: Annotated[Any, Depends(db.provide_session())],
        connection: Annotated[Any, Depends(db.provide_connection())],
    ) -> list[str]:
        return [session, connection]

    assert db.provide_connection() is not db.provide_session()
    assert db.provide_connection() is db.provide_connection("default")
    app.dependency_overrides[db.provide_session()] = lambda: "session"
    app.dependency_overrides[db.provide_connection("db_session")] = lambda: "connection"
    assert (await get(app)).json() == ["session", "connection"]


def test_settings_for_fastapi_are_the_databases(pg: RawDatabase) -> None:
    settings = FastAPIConfig(commit_mode="autocommit", session_key="sql")
    app = FastAPI()
    db = Transept(AsyncpgConfig(pool_config=pg.pool_config, extension_config={"fastapi": settings}), app)

    @app.post("/")
    async def write(request: Request, session: Annotated[SQLSession, Depends(db.provide_session("sql"))]) -> bool:
        await session.execute(INSERT, 1)
        return request.state.sql is session and app.state.sql_pool is not None

    with TestClient(app) as client:
        assert client.post("/").json() is True
    assert pg.held() == [1]


async def test_a_database_that_is_down_is_answered_503_or_by_the_apps_handler() -> None:
    app = FastAPI()
    nowhere = AsyncpgConfig(pool_config={"dsn": "postgresql://nobody@127.0.0.1:1/nothing"})
    db = Transept(nowhere, app)

    @app.get("/")
    async def look(session: Annotated[SQLSession, Depends(db.provide_session())], use: bool = False) -> bool:
        if use:
            await session.execute("SELECT 1")
        return use

    assert (await get(app)).json() is False
    assert (await get(app, "/?use=1")).status_code == 503

    with_handler = FastAPI(exception_handlers={DatabaseUnavailable: lambda request, error: answer(418)})
    with_handler.router.routes.extend(app.router.routes[-1:])
    db.init_app(with_handler)
    assert (await get(with_handler, "/?use=1")).status_code == 418


def answer(status: int) -> Any:
    from starlette.responses import Response

    return Response(status_code=status)


async def test_the_dependencies_show_nothing_in_the_schema(pg: RawDatabase) -> None:
    app = FastAPI()
    db = Transept(pg.config(), app)

    @app.get("/")
    async def look(
        session: Annotated[SQLSession, Depends(db.provide_session())],
        connection: Annotated[Connection, Depends(db.provide_connection())],
    ) -> int:
        return 1

    assert "parameters" not in app.openapi()["paths"]["/"]["get"]
    assert inspect.iscoroutinefunction(db.provide_connection())
