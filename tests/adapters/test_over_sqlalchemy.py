"""SQL-first sessions on the connection of a SQLAlchemy session: one transaction, seen by the unit of work."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import asyncpg
import httpx
import pytest
from servers.server import Server
from sqlalchemy import DateTime, String, Uuid, bindparam, create_engine, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError as AlchemyIntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from transept import (
    CommitFailed,
    ConcurrentUseError,
    OutsideScope,
    UsageError,
    after_commit,
    current_unit,
    transaction,
    unit_of_work,
)
from transept.adapters.sqlalchemy import over
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.errors import DeadlockError, ParameterError, ProgrammingError, UniqueViolationError
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "over_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(50), unique=True)
    key: Mapped[uuid.UUID | None] = mapped_column(Uuid)
    at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


ASYNC = [("sqlite", "aiosqlite"), ("postgres", "asyncpg"), ("postgres", "psycopg"), ("mariadb", "asyncmy")]
BLOCKING = [("sqlite", "pysqlite"), ("postgres", "psycopg"), ("mariadb", "pymysql")]
POSTGRES = [pair for pair in ASYNC if pair[0] == "postgres"]
SQLITE = [pair for pair in ASYNC if pair[0] == "sqlite"]
MARIADB = [pair for pair in ASYNC if pair[0] == "mariadb"]
NAMES = "SELECT name FROM over_items ORDER BY name"


def url_for(kind: str, driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own."""
    if kind == "sqlite":
        yield f"sqlite+{driver}:///{tmp_path / 'over.db'}"
        return
    server: Server = request.getfixturevalue(kind)
    name = f"over_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield make_url(server.url(driver)).set(database=name).render_as_string(hide_password=False)
    finally:
        server.execute(f"DROP DATABASE {name}" + (" WITH (FORCE)" if kind == "postgres" else ""))


@pytest.fixture(params=ASYNC, ids="-".join)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from url_for(*request.param, request, tmp_path)


@pytest.fixture(params=BLOCKING, ids="-".join)
def blocking_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield from url_for(*request.param, request, tmp_path)


@asynccontextmanager
async def shop(url: str) -> AsyncIterator[SQLAlchemyAsyncConfig]:
    config = SQLAlchemyAsyncConfig(
        connection_string=url, create_all=True, metadata=Base.metadata, commit_mode="autocommit"
    )
    await config.start()
    try:
        yield config
    finally:
        await config.stop()


@contextmanager
def blocking_shop(url: str) -> Iterator[SQLAlchemySyncConfig]:
    config = SQLAlchemySyncConfig(connection_string=url, metadata=Base.metadata)
    Base.metadata.create_all(config.get_engine())
    try:
        yield config
    finally:
        config.get_engine().dispose()


async def names(config: SQLAlchemyAsyncConfig) -> list[str]:
    """What another session sees."""
    async with config.get_engine().connect() as look:
        return [name for (name,) in await look.execute(text(NAMES))]


async def status_of(config: SQLAlchemyAsyncConfig, endpoint: Any) -> int:
    """What a client is told."""
    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    Transept(config, app)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return (await client.post("/")).status_code


def insert_of(url: str) -> str:
    """An insert with two values, in the style of the driver."""
    marks = "$1, $2" if "asyncpg" in url else "?, ?" if url.startswith("sqlite") else "%s, %s"
    return f"INSERT INTO over_items (id, name) VALUES ({marks})"


async def test_what_the_orm_and_sql_write_is_kept_together(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            session = unit.session(config)
            session.add(Item(id=1, name="orm"))
            await over(session).execute(insert_of(url), 2, "sql")
        assert await names(config) == ["orm", "sql"]


async def test_what_the_orm_and_sql_write_is_rolled_back_together(url: str) -> None:
    async with shop(url) as config:
        with pytest.raises(ZeroDivisionError):
            async with unit_of_work() as unit:
                session = unit.session(config)
                await over(session).execute(insert_of(url), 2, "sql")
                session.add(Item(id=1, name="orm"))
                await session.flush()
                raise ZeroDivisionError
        assert await names(config) == []


async def test_each_sees_what_the_other_wrote(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        session.add(Item(id=1, name="orm"))
        assert await over(session).select(NAMES) == [{"name": "orm"}]
        await over(session).execute("INSERT INTO over_items (id, name) VALUES (:id, :name)", id=2, name="sql")
        assert (await session.get_one(Item, 2)).name == "sql"


async def test_sql_alone_is_a_write_that_the_unit_knows_of(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        await over(session).select(NAMES)
        assert not session.sync_session.transept_seat.wrote
        await over(session).execute(insert_of(url), 1, "sql")
        assert session.sync_session.transept_seat.wrote


async def test_nothing_is_flushed_where_autoflush_is_off(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        with session.no_autoflush:
            session.add(Item(id=1, name="orm"))
            assert await over(session).select(NAMES) == []


async def test_an_error_is_of_the_family_of_sql_errors_with_the_drivers_own_as_its_cause(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        await sql.execute(insert_of(url), 1, "one")
        with pytest.raises(UniqueViolationError) as caught:
            async with sql.transaction():
                await sql.execute(insert_of(url), 2, "one")
        assert caught.value.database == config.key
        assert caught.value.sql is not None
        assert not type(caught.value.__cause__).__module__.startswith("sqlalchemy")
        assert isinstance(caught.value.__context__, AlchemyIntegrityError)
        if "asyncpg" in url:
            assert isinstance(caught.value.__cause__, asyncpg.UniqueViolationError)
        assert await sql.select_value("SELECT count(*) FROM over_items") == 1


async def test_an_error_caught_in_sql_fails_the_commit_on_postgresql_alone(url: str) -> None:
    async with shop(url) as config:

        async def work() -> None:
            async with unit_of_work() as unit:
                sql = over(unit.session(config))
                await sql.execute(insert_of(url), 1, "one")
                with pytest.raises(UniqueViolationError):
                    await sql.execute(insert_of(url), 2, "one")

        if url.startswith("postgresql"):
            with pytest.raises(CommitFailed):
                await work()
            assert await names(config) == []
        else:
            await work()
            assert await names(config) == ["one"]


@pytest.mark.parametrize("url", POSTGRES, ids="-".join, indirect=True)
async def test_an_error_caught_in_sql_fails_the_apps_own_commit_on_postgresql(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        with pytest.raises(ProgrammingError):
            await sql.execute("SELECT * FROM over_nothing")
        with pytest.raises(CommitFailed):
            await sql.commit()
        assert await sql.select(NAMES) == []


@pytest.mark.parametrize("url", SQLITE, ids="-".join, indirect=True)
async def test_a_transaction_that_sqlite_dropped_in_sql_is_not_committed(url: str) -> None:
    async with shop(url) as config:
        with pytest.raises(CommitFailed):
            async with unit_of_work() as unit:
                sql = over(unit.session(config))
                await sql.execute(insert_of(url), 1, "one")
                with pytest.raises(UniqueViolationError):
                    await sql.execute("INSERT OR ROLLBACK INTO over_items (id) VALUES (1)")
                await sql.execute(insert_of(url), 2, "two")
        assert await names(config) == []


@pytest.mark.parametrize("url", MARIADB, ids="-".join, indirect=True)
async def test_a_transaction_that_mariadb_ended_at_a_deadlock_in_sql_is_not_committed(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            await over(unit.session(config)).execute_many(insert_of(url), [(1, "one"), (2, "two")])
        locked = asyncio.Barrier(2)

        async def lock(first: int, second: int) -> None:
            async with unit_of_work() as unit:
                sql = over(unit.session(config))
                await sql.execute("UPDATE over_items SET at = now() WHERE id = :id", id=first)
                await locked.wait()
                with suppress(DeadlockError):
                    await sql.execute("UPDATE over_items SET at = now() WHERE id = :id", id=second)

        ended = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
        assert sorted(type(error).__name__ for error in ended) == ["CommitFailed", "NoneType"]


async def test_two_tasks_at_once_are_told_apart_before_the_driver_is_reached(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        answers = await asyncio.gather(
            session.scalar(text("SELECT 1")), over(session).select_value("SELECT 2"), return_exceptions=True
        )
        assert answers[0] == 1
        assert isinstance(answers[1], ConcurrentUseError)
        assert await over(session).select_value("SELECT 3") == 3


async def test_after_its_unit_it_is_out_of_scope(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            sql = over(unit.session(config))
            rows = sql.stream(NAMES)
            await sql.execute(insert_of(url), 1, "one")
            assert [row async for row in rows] == [{"name": "one"}]
        for call in (sql.select(NAMES), sql.commit(), sql.begin(), sql.transaction().__aenter__()):
            with pytest.raises(OutsideScope):
                await call
        await sql.rollback()


async def test_a_block_inside_a_transaction_is_a_savepoint(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            session = unit.session(config)
            sql = over(session)
            told = []
            await sql.execute(insert_of(url), 1, "kept")
            async with sql.transaction():
                session.add(Item(id=2, name="kept, too"))
            with pytest.raises(ZeroDivisionError):
                async with sql.transaction():
                    await sql.execute(insert_of(url), 3, "lost")
                    session.add(Item(id=4, name="lost, too"))
                    after_commit(lambda: told.append("lost"))
                    raise ZeroDivisionError
            after_commit(lambda: told.append("kept"))
        assert await names(config) == ["kept", "kept, too"]
        assert told == ["kept"]


async def test_a_block_outside_of_a_transaction_is_one(url: str) -> None:
    async with shop(url) as config:

        async def endpoint(request: Request) -> Response:
            sql = over(request.state.db_session)
            async with sql.transaction():
                await sql.execute(insert_of(url), 1, "one")
            assert await names(config) == ["one"]
            with pytest.raises(ZeroDivisionError):
                async with sql.transaction():
                    await sql.execute(insert_of(url), 2, "two")
                    raise ZeroDivisionError
            return Response(status_code=204)

        assert await status_of(config, endpoint) == 204
        assert await names(config) == ["one"]


async def test_a_block_that_is_the_first_use_inside_a_units_block_is_a_part_of_it(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            sql = over(unit.session(config))
            with suppress(ZeroDivisionError):
                async with transaction("nested"):
                    async with sql.transaction():
                        await sql.execute(insert_of(url), 1, "one")
                    raise ZeroDivisionError
            async with sql.transaction():
                await sql.execute(insert_of(url), 2, "two")
            assert await names(config) == []
            with suppress(ZeroDivisionError):
                async with sql.transaction():
                    await sql.execute(insert_of(url), 3, "three")
                    raise ZeroDivisionError
        assert await names(config) == ["two"]


async def test_a_block_in_a_body_is_kept_as_a_whole_or_not_at_all(url: str) -> None:
    async with shop(url) as config:

        async def endpoint(request: Request) -> Response:
            sql = over(request.state.db_session)

            async def body() -> AsyncIterator[bytes]:
                with suppress(ZeroDivisionError):
                    async with sql.transaction():
                        await sql.execute(insert_of(url), 1, "one")
                        yield b"1"
                        await sql.execute(insert_of(url), 2, "two")
                        raise ZeroDivisionError
                async with sql.transaction():
                    await sql.execute(insert_of(url), 3, "three")
                    yield b"3"
                    assert await names(config) == []

            return StreamingResponse(body())

        assert await status_of(config, endpoint) == 200
        assert await names(config) == ["three"]


def test_a_block_over_two_messages_is_one(url: str) -> None:
    config = SQLAlchemyAsyncConfig(
        connection_string=url, create_all=True, metadata=Base.metadata, commit_mode="autocommit"
    )

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        sql = over(websocket.state.db_session)
        with suppress(ZeroDivisionError):
            async with sql.transaction():
                await sql.execute(insert_of(url), 1, "one")
                await websocket.receive_text()
                await sql.execute(insert_of(url), 2, "two")
                raise ZeroDivisionError
        async with sql.transaction():
            await sql.execute(insert_of(url), 3, "three")
            await websocket.receive_text()
        await websocket.send_text(str(await names(config)))
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    Transept(config, app)
    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        websocket.send_text("go on")
        websocket.send_text("go on")
        assert websocket.receive_text() == "['three']"


@pytest.mark.parametrize("url", SQLITE, ids="-".join, indirect=True)
async def test_the_error_that_leaves_a_block_is_the_apps_own(url: str) -> None:
    async with shop(url) as config:
        caught: list[Exception] = []

        async def endpoint(request: Request) -> Response:
            sql = over(request.state.db_session)
            await sql.execute(insert_of(url), 1, "one")
            try:
                async with sql.transaction():
                    await sql.execute("INSERT OR ROLLBACK INTO over_items (id) VALUES (1)")
            except Exception as error:
                caught.append(error)
            return Response(status_code=201)

        assert await status_of(config, endpoint) == 500
        (error,) = caught
        assert isinstance(error, UniqueViolationError)
        assert "while undoing a session.transaction() block" in error.__notes__[-1]
        assert await names(config) == []


async def test_what_follows_the_end_of_its_transaction_inside_a_block_is_not_kept(url: str) -> None:
    async with shop(url) as config:

        async def endpoint(request: Request) -> Response:
            session = request.state.db_session
            sql = over(session)
            with suppress(ZeroDivisionError):
                async with sql.transaction():
                    await sql.execute(insert_of(url), 1, "one")
                    await session.close()
                    await sql.execute(insert_of(url), 2, "two")
                    raise ZeroDivisionError
            return Response(status_code=201)

        assert await status_of(config, endpoint) == 500
        assert await names(config) == []


@pytest.mark.parametrize("inside", [False, True], ids=["whole", "savepoint"])
async def test_the_end_of_a_block_that_is_cancelled_runs_to_its_end(url: str, inside: bool) -> None:
    async with shop(url) as config:

        async def endpoint(request: Request) -> Response:
            sql = over(request.state.db_session)
            if inside:
                await sql.begin()
            block = sql.transaction()
            await block.__aenter__()
            await sql.execute(insert_of(url), 1, "one")
            ending = asyncio.ensure_future(block.__aexit__(None, None, None))
            await asyncio.sleep(0)
            ending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ending
            await sql.execute(insert_of(url), 2, "two")
            return Response(status_code=201)

        assert await status_of(config, endpoint) == 201
        assert await names(config) == ["one", "two"]


async def test_another_database_may_be_committed_inside_a_block(url: str, tmp_path: Path) -> None:
    async with shop(url) as config, shop(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}") as other:

        async def endpoint(request: Request) -> Response:
            sql = over(request.state.db_session)
            async with sql.transaction():
                await sql.execute(insert_of(url), 1, "one")
                unit = current_unit()
                await over(unit.session(other)).execute("INSERT INTO over_items (id, name) VALUES (1, 'other')")
                await unit.commit(other)
                with pytest.raises(UsageError, match="inside a block"):
                    await unit.commit(config)
            assert await names(other) == ["other"]
            return Response(status_code=201)

        assert await status_of(config, endpoint) == 201


async def test_nobody_ends_the_transaction_inside_a_block(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        sql = over(session)
        await sql.begin()
        async with sql.transaction():
            for end in (sql.commit, sql.rollback, session.commit, session.rollback, over(session).commit):
                with pytest.raises(UsageError, match="inside a block"):
                    await end()
            with pytest.raises(UsageError, match="inside a block"):
                await sql.execute("COMMIT")
        await sql.commit()


async def test_commit_and_rollback_are_the_sessions(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        sql = over(session)
        session.add(Item(id=1, name="one"))
        await sql.commit()
        assert not session.in_transaction()
        await sql.execute(insert_of(url), 2, "two")
        await sql.execute("ROLLBACK")
        assert await names(config) == ["one"]


async def test_only_execute_may_end_the_transaction(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            sql = over(unit.session(config))
            await sql.execute(insert_of(url), 1, "one")
            with pytest.raises(UsageError, match="leave out"):
                await sql.execute_many("ROLLBACK", [()])
            with pytest.raises(UsageError, match="leave out"):
                await anext(sql.stream("ROLLBACK"))
        assert await names(config) == ["one"]


async def test_rows_are_streamed_through_a_cursor_that_the_unit_knows_of(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        session = unit.session(config)
        sql = over(session)
        await sql.execute_many(insert_of(url), [(i + 1, f"{i:04}") for i in range(2500)])
        rows = sql.stream(NAMES, chunk_size=1000)
        assert await anext(rows) == {"name": "0000"}
        assert len(session.sync_session.transept_seat.cursors) == 1
        assert [row["name"] async for row in rows] == [f"{i:04}" for i in range(1, 2500)]
        assert not session.sync_session.transept_seat.cursors


async def test_a_stream_ends_with_its_transaction(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        await sql.execute_many(insert_of(url), [(i + 1, f"{i:04}") for i in range(100)])
        rows = sql.stream(NAMES, chunk_size=10)
        await anext(rows)
        await sql.commit()
        with pytest.raises(OutsideScope, match="stream"):
            _ = [row async for row in rows]


async def test_a_stream_that_is_not_read_to_its_end_is_closed_with_the_unit(url: str) -> None:
    async with shop(url) as config:
        async with unit_of_work() as unit:
            sql = over(unit.session(config))
            await sql.execute_many(insert_of(url), [(i + 1, f"{i:04}") for i in range(100)])
            rows = sql.stream(NAMES, chunk_size=10)
            await anext(rows)
        with pytest.raises(OutsideScope):
            _ = [row async for row in rows]
        assert len(await names(config)) == 100


@pytest.mark.parametrize("url", POSTGRES, ids="-".join, indirect=True)
async def test_a_document_goes_in_and_comes_back_as_one(url: str) -> None:
    class Found(TypedDict):
        document: dict[str, list[int]]

    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        await sql.execute("CREATE TEMP TABLE documents (document jsonb)")
        await sql.execute("INSERT INTO documents VALUES (:document)", document={"a": [1]})
        found = await sql.select("SELECT document FROM documents", schema_type=Found)
        assert found == [{"document": {"a": [1]}}]


async def test_statements_of_sqlalchemy_run_as_they_are(url: str) -> None:
    at, key = datetime(2024, 2, 29, 12, tzinfo=UTC), uuid.uuid4()
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        await sql.execute(insert(Item).values(id=1, name="one", key=key))
        await sql.execute_many(insert(Item), [{"id": 2, "name": "two", "at": at}, {"id": 3, "name": "three", "at": at}])
        found = select(Item.name, Item.key).where(Item.id == bindparam("wanted"))
        assert await sql.select(found, wanted=1) == [{"name": "one", "key": key}]
        rows, total = await sql.select_with_total(select(Item).order_by(Item.id).limit(1))
        assert (rows[0]["id"], total) == (1, 3)
        assert [row async for row in sql.stream(select(Item.id).where(Item.id.in_([2, 3])).order_by(Item.id))] == [
            {"id": 2},
            {"id": 3},
        ]
        with pytest.raises(UsageError, match="by name"):
            await sql.select(found, 1)
        with pytest.raises(UsageError, match="neither"):
            await sql.execute(object())


async def test_values_and_percent_signs_reach_the_driver_as_they_are_written(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        await sql.execute("INSERT INTO over_items (id, name) VALUES (:id, :name)", id=1, name="100%")
        assert await sql.select_value("SELECT count(*) FROM over_items WHERE name LIKE '%0%'") == 1
        assert await sql.select_value("SELECT name FROM over_items WHERE name LIKE '1%' AND id = :id", id=1) == "100%"
        assert await sql.select_value("SELECT count(*) FROM over_items WHERE id IN (:ids)", ids=[1, 2]) == 1
        with pytest.raises(ParameterError):
            await sql.select("SELECT :a", b=1)


async def test_the_result_tells_what_the_statement_did(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        made = await sql.execute("INSERT INTO over_items (name) VALUES (:name)", name="one")
        assert made.rows_affected == 1
        assert made.last_inserted_id == (None if url.startswith("postgresql") else 1)
        assert (await sql.execute("UPDATE over_items SET name = 'two' WHERE id = 99")).rows_affected == 0
        assert (await sql.execute("SELECT id, name FROM over_items WHERE id = 99")).column_names == ("id", "name")


async def test_a_script_is_a_part_of_the_transaction(url: str) -> None:
    async with shop(url) as config, unit_of_work() as unit:
        sql = over(unit.session(config))
        await sql.execute_script(
            "INSERT INTO over_items (id, name) VALUES (1, 'one; 5%'); INSERT INTO over_items (id) VALUES (2);"
        )
        assert await sql.select_value("SELECT count(*) FROM over_items") == 2
        await sql.rollback()
        assert await sql.select_value("SELECT count(*) FROM over_items") == 0
        with pytest.raises(UsageError, match="script"):
            await sql.execute_script("SELECT 1; COMMIT")


async def test_a_session_of_the_apps_own_works_without_a_unit(url: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session:
        sql = over(session)
        session.add(Item(id=1, name="orm"))
        async with sql.transaction():
            await sql.execute(insert_of(url), 2, "sql")
            with pytest.raises(UsageError, match="inside a block"):
                await sql.commit()
        assert [row["name"] async for row in sql.stream(NAMES)] == ["orm", "sql"]
        await sql.rollback()
        with pytest.raises(ProgrammingError):
            await sql.execute("SELECT * FROM over_nothing")
    await engine.dispose()


def test_blocking_sessions_have_a_blocking_twin(blocking_url: str) -> None:
    with blocking_shop(blocking_url) as config:
        with unit_of_work() as unit:
            session = unit.session(config)
            sql = over(session)
            session.add(Item(id=1, name="orm"))
            sql.execute(insert_of(blocking_url), 2, "sql")
            with sql.transaction():
                sql.execute("UPDATE over_items SET name = :new WHERE name = :old", new="row", old="sql")
            assert [row["name"] for row in sql.stream(NAMES)] == ["orm", "row"]
            rows, total = sql.select_with_total("SELECT id FROM over_items ORDER BY id LIMIT :n", n=1)
            assert (rows, total) == ([{"id": 1}], 2)
        with config.get_engine().connect() as look:
            assert look.scalar(text("SELECT count(*) FROM over_items")) == 2
        with pytest.raises(OutsideScope):
            sql.select(NAMES)


def test_blocks_of_blocking_sessions_are_a_part_of_the_units(blocking_url: str) -> None:
    with blocking_shop(blocking_url) as config:
        with unit_of_work() as unit:
            sql = over(unit.session(config))
            with suppress(ZeroDivisionError), transaction("nested"):
                with sql.transaction():
                    sql.execute(insert_of(blocking_url), 1, "one")
                raise ZeroDivisionError
            with suppress(ZeroDivisionError), sql.transaction():
                sql.execute(insert_of(blocking_url), 2, "two")
                raise ZeroDivisionError
            with sql.transaction():
                sql.execute(insert_of(blocking_url), 3, "three")
        with config.get_engine().connect() as look:
            assert look.execute(text(NAMES)).scalars().all() == ["three"]


def test_blocking_sessions_are_rolled_back_as_one(blocking_url: str) -> None:
    with blocking_shop(blocking_url) as config:
        with pytest.raises(ZeroDivisionError), unit_of_work() as unit:
            over(unit.session(config)).execute(insert_of(blocking_url), 2, "sql")
            raise ZeroDivisionError
        with config.get_engine().connect() as look:
            assert look.scalar(text("SELECT count(*) FROM over_items")) == 0


def test_what_is_no_session_is_refused() -> None:
    with pytest.raises(UsageError, match="Session or an AsyncSession"):
        over(object())  # type: ignore[call-overload]


def test_an_unknown_driver_is_refused_with_those_that_are_known() -> None:
    engine = create_engine("sqlite://")
    engine.dialect.driver = "other"
    with Session(engine) as session, pytest.raises(UsageError, match="pysqlite, aiosqlite"):
        over(session)
