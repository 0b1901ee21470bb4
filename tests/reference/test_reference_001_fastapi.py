"""The FastAPI snippets of the context API's reference, unchanged but for their imports."""

from contextlib import asynccontextmanager
from typing import Any, AsyncGenerator  # noqa: UP035 - as the reference writes it

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from held import Postgres
from sqlalchemy import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from transept import db_session
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware


class Base(DeclarativeBase):
    pass


class ExampleTable(Base):
    __tablename__ = "example"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.mark.parametrize("status", [200, 303, 400])
def test_an_app_with_the_middleware_and_a_lifespan_that_closes_the_connection(pg: Postgres, status: int) -> None:
    connection = pg.dbconnect()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, Any]:
        """Database connection lifecycle management"""
        yield
        await connection.close()  # Close the engine if it was open

    app = FastAPI(lifespan=lifespan)
    add_fastapi_http_db_session_middleware(app)

    async def some_func() -> None:
        # Created a session (no connection to the database yet)
        session = await db_session(connection)

        stmt = insert(ExampleTable).values(text="example_with_db_session")

        # On the first request, a connection and transaction were opened
        await session.execute(stmt)

        # If you call db_session again, it will return the same session
        # even in child coroutines.
        session = await db_session(connection)

        # The second request will use the same connection and the same transaction
        await session.execute(stmt)

        # The commit and closing of the session will occur automatically

    @app.post("/", status_code=status)
    async def endpoint() -> None:
        await some_func()

    pg.look.execute("DROP TABLE IF EXISTS example; CREATE TABLE example (id serial PRIMARY KEY, text text)")
    with TestClient(app, follow_redirects=False) as client:
        assert client.post("/").status_code == status
        kept = 2 if status < 400 else 0
        assert pg.look.execute("SELECT count(*) FROM example").fetchone() == (kept,)
    assert pg.disposed == ["127.0.0.1"]
