"""Each snippet of the Starlette reference, unchanged but for its imports."""

from __future__ import annotations

from typing import Any

import pytest
from held import calling, get
from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from transept.extensions.starlette import (
    AsyncSessionConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemySyncConfig,
)
from transept.extensions.starlette import Transept as AdvancedAlchemy

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    word: Mapped[str]


async def test_the_basic_setup_and_a_health_check_that_asks_for_the_engine() -> None:
    alchemy_config = SQLAlchemyAsyncConfig(
        connection_string="sqlite+aiosqlite:///:memory:",
        session_config=AsyncSessionConfig(expire_on_commit=False),
        commit_mode="autocommit",
    )

    app = Starlette()
    alchemy = AdvancedAlchemy(config=alchemy_config, app=app)

    async def healthcheck(request: Request) -> JSONResponse:
        session = alchemy.get_async_session(request)
        await session.execute(text("SELECT 1"))
        engine = alchemy.get_async_engine()
        return JSONResponse({"dialect": engine.dialect.name, "status": "ok"})

    app.router.routes.append(Route("/health", endpoint=healthcheck))

    response = await get(app, "/health")
    assert (response.status_code, response.json()) == (200, {"dialect": "sqlite", "status": "ok"})
    with TestClient(app) as client:
        assert client.get("/health").json() == {"dialect": "sqlite", "status": "ok"}
    assert TestClient(app).get("/health").status_code == 200


async def test_the_redirect_mode_keeps_what_a_redirect_wrote() -> None:
    app = Starlette()
    write_config = SQLAlchemyAsyncConfig(
        connection_string="sqlite+aiosqlite:///:memory:",
        commit_mode="autocommit_include_redirect",
    )
    alchemy = AdvancedAlchemy(config=write_config, app=app)

    async def write(request: Request) -> RedirectResponse:
        session = alchemy.get_async_session(request)
        await session.execute(text("CREATE TABLE IF NOT EXISTS t (v integer)"))
        await session.execute(text("INSERT INTO t VALUES (1)"))
        return RedirectResponse("/elsewhere", 303)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    async with calling(app) as client:
        assert (await client.post("/")).status_code == 303
        async with alchemy.get_async_engine().connect() as second:
            assert await second.scalar(text("SELECT count(*) FROM t")) == 1


def several() -> tuple[Starlette, Any]:
    app = Starlette()
    alchemy = AdvancedAlchemy(
        config=[
            SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite:///:memory:"),
            SQLAlchemySyncConfig(connection_string="sqlite+pysqlite:///:memory:", bind_key="reporting"),
        ],
        app=app,
    )
    return app, alchemy


async def test_several_binds_are_found_by_colour_and_key() -> None:
    _, alchemy = several()
    async_session = alchemy.get_async_config()
    reporting_session = alchemy.get_sync_config("reporting")

    assert (async_session.bind_key, async_session.session_key) == ("default", "db_session")
    assert (reporting_session.bind_key, reporting_session.session_key) == ("reporting", "reporting_session")


async def test_a_session_is_stored_on_the_state_and_is_the_same_within_the_request() -> None:
    app, alchemy = several()

    async def endpoint(request: Request) -> JSONResponse:
        first, report = alchemy.get_session(request), alchemy.get_session(request, "reporting")
        return JSONResponse(
            [
                first is request.state.db_session is alchemy.get_async_session(request),
                report is request.state.reporting_session is alchemy.get_sync_session(request, "reporting"),
            ]
        )

    app.router.routes.append(Route("/", endpoint))
    assert (await get(app)).json() == [True, True]


def keeping_notes(**settings: Any) -> tuple[SQLAlchemySyncConfig, Starlette, AdvancedAlchemy]:
    config = SQLAlchemySyncConfig(
        connection_string="sqlite+pysqlite:///:memory:",
        bind_key="reporting",
        commit_mode="autocommit",
        create_all=True,
        metadata=Base.metadata,
        **settings,
    )
    app = Starlette()
    return config, app, AdvancedAlchemy(config=config, app=app)


def words(config: SQLAlchemySyncConfig) -> list[str]:
    with config.get_engine().connect() as second:
        return list(second.scalars(select(Note.word).order_by(Note.id)))


def test_a_sync_bind_in_memory_keeps_what_a_plain_endpoint_wrote() -> None:
    config, app, alchemy = keeping_notes()

    def write(request: Request) -> JSONResponse:
        alchemy.get_sync_session(request).add(Note(word=request.query_params["word"]))
        return JSONResponse("ok", int(request.query_params.get("status", "201")))

    app.router.routes.append(Route("/", write, methods=["POST"]))
    with TestClient(app) as client:
        assert [client.post("/?word=a").status_code, client.post("/?word=b").status_code] == [201, 201]
        assert client.post("/?word=c&status=409").status_code == 409
        assert words(config) == ["a", "b"]


def test_a_sync_bind_in_memory_keeps_its_data_also_without_a_lifespan() -> None:
    config, app, alchemy = keeping_notes()

    def write(request: Request) -> JSONResponse:
        session = alchemy.get_sync_session(request)
        session.add(Note(word="a"))
        session.flush()
        return JSONResponse(len(session.scalars(select(Note)).all()), 201)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    client = TestClient(app)
    assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    assert words(config) == ["a", "a", "a"]


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
def test_a_sync_bind_in_memory_keeps_what_an_async_endpoint_wrote() -> None:
    config, app, alchemy = keeping_notes()

    async def write(request: Request) -> JSONResponse:
        session = alchemy.get_sync_session(request)
        session.add(Note(word="a"))
        session.flush()
        return JSONResponse(len(session.scalars(select(Note)).all()), 201)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    with TestClient(app) as client:
        assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
        assert words(config) == ["a", "a", "a"]


async def test_an_async_bind_in_memory_is_one_database_for_all_requests_of_a_lifespan() -> None:
    config = SQLAlchemyAsyncConfig(
        connection_string="sqlite+aiosqlite:///:memory:",
        commit_mode="autocommit",
        create_all=True,
        metadata=Base.metadata,
    )
    app = Starlette()
    alchemy = AdvancedAlchemy(config=config, app=app)

    async def write(request: Request) -> JSONResponse:
        session = alchemy.get_async_session(request)
        session.add(Note(word="a"))
        await session.flush()
        return JSONResponse(len((await session.scalars(select(Note))).all()), 201)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    with TestClient(app) as client:
        assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    client = TestClient(app)  # a loop for each request, and no lifespan
    assert [client.post("/").json() for _ in range(2)][1] == 2
