"""Each snippet of the context API's reference, unchanged but for its imports and for where the server is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from held import calling
from servers.server import Server
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from transept import DBConnect, db_session
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware
from transept.extensions.starlette import add_starlette_http_db_session_middleware

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class ExampleTable(Base):
    __tablename__ = "example_001"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


# database.py

WHERE: dict[str, Any] = {"pg_user": "krylosov-aa", "pg_password": "", "pg_port": 6432, "pg_db": "test"}


def create_engine(host: str) -> AsyncEngine:
    """
    database connection parameters.
    """
    # In production code, you will probably take these parameters from env
    pg_user = WHERE["pg_user"]
    pg_password = WHERE["pg_password"]
    pg_port = WHERE["pg_port"]
    pg_db = WHERE["pg_db"]
    return create_async_engine(
        f"postgresql+asyncpg://{pg_user}:{pg_password}@{host}:{pg_port}/{pg_db}",
        future=True,
        pool_pre_ping=True,
    )


def create_session_maker(
    engine: AsyncEngine,
) -> async_sessionmaker[AsyncSession]:
    """session parameters"""
    return async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


connection = DBConnect(
    host="127.0.0.1",
    engine_creator=create_engine,
    session_maker_creator=create_session_maker,
)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncGenerator[None, Any]:
    """Database connection lifecycle management"""
    yield
    await connection.close()  # Close the engine if it was open


async def some_func() -> None:
    # Created a session (no connection to the database yet)
    session = await db_session(connection)
    assert not session.in_transaction()

    stmt = insert(ExampleTable).values(text="example_with_db_session")

    # On the first request, a connection and transaction were opened
    await session.execute(stmt)
    first = await session.connection()

    # If you call db_session again, it will return the same session
    # even in child coroutines.
    again = await db_session(connection)
    assert again is session

    # The second request will use the same connection and the same transaction
    await again.execute(stmt)
    assert await again.connection() is first

    # The commit and closing of the session will occur automatically


@pytest.fixture
def here(postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server that the tests have, with the table; gives a second connection."""
    for key, value in (("user", postgres.user), ("port", postgres.port), ("db", postgres.database)):
        monkeypatch.setitem(WHERE, f"pg_{key}", value)
    look = postgres.connect()
    look.execute("DROP TABLE IF EXISTS example_001; CREATE TABLE example_001 (id serial PRIMARY KEY, text text)")
    yield look
    look.execute("DROP TABLE example_001")
    look.close()


def kept(look: Any) -> list[str]:
    return [text for (text,) in look.execute("SELECT text FROM example_001")]


async def test_the_connection_is_configured_as_written_and_connects_to_nobody_yet() -> None:
    assert connection.host == "127.0.0.1"
    url = create_engine("127.0.0.1").url
    assert (url.username, url.port, url.database) == ("krylosov-aa", 6432, "test")


def test_with_fastapi(here: Any) -> None:
    app = FastAPI(lifespan=lifespan)
    add_fastapi_http_db_session_middleware(app)

    @app.post("/")
    async def endpoint(status: int = 200) -> None:
        await some_func()
        if status != 200:
            raise ValueError

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 200
        assert kept(here) == ["example_with_db_session"] * 2
        assert client.post("/?status=500").status_code == 500
    assert kept(here) == ["example_with_db_session"] * 2


def test_with_starlette(here: Any) -> None:
    async def endpoint(request: Request) -> JSONResponse:
        await some_func()
        session = await db_session(connection)
        rows = (await session.scalars(select(ExampleTable))).all()
        return JSONResponse([row.text for row in rows])

    app = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)
    add_starlette_http_db_session_middleware(app)
    with TestClient(app) as client:
        assert client.get("/").json() == ["example_with_db_session"] * 2
    assert kept(here) == ["example_with_db_session"] * 2


async def test_the_engine_is_closed_at_the_end_of_the_application(here: Any) -> None:
    app = Starlette(routes=[Route("/", lambda request: JSONResponse(None))])
    add_starlette_http_db_session_middleware(app)
    async with lifespan(app):
        async with calling(app) as client:
            assert (await client.get("/")).status_code == 200
        engine = connection.get_engine()
    assert connection.get_engine() is not engine
    await connection.close()
