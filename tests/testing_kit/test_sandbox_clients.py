"""Whoever calls the app, on whatever loop and in whatever thread, reaches the same sandbox."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx
import psycopg
import pytest
from contract.families.alchemy_async import AlchemyAsync
from contract.families.alchemy_sync import AlchemySync
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from testing_kit.conftest import Cell, Use, cells

from transept import DBConnect, unit_of_work
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.starlette import Transept
from transept.gate.wsgi import WSGIGate
from transept.testing import Sandbox

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Held(Base):
    __tablename__ = "held"
    v: Mapped[int] = mapped_column(primary_key=True)


COUNT = text("SELECT count(*) FROM held")
INSERT = text("INSERT INTO held VALUES (1)")
ASYNC = [name for name in cells() if name.startswith(("alchemy-async", "asyncpg"))]
SYNC = cells(family=AlchemySync)


async def write(use: Use) -> None:
    await use.insert(1)


async def asserted(cell: Cell, sandbox: Sandbox, database, expected: int) -> None:
    if cell.blocking:
        with sandbox.session(database) as session:
            assert session.scalar(COUNT) == expected
        return
    async with sandbox.session(database) as session:
        assert await Use(cell, session).count() == expected


@pytest.mark.parametrize("cell", cells(), indirect=True)
def test_a_test_client_with_one_loop_and_its_lifespan(cell):
    database = cell.database()
    app = cell.app(database, {"write": write})
    with Sandbox(database) as sandbox:
        for _ in range(2):
            with TestClient(app) as client:
                assert [client.post("/write").status_code for _ in range(3)] == [200] * 3
        asyncio.run(asserted(cell, sandbox, database, 6)) if not cell.blocking else None
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", ASYNC, indirect=True)
async def test_an_async_client_on_the_tests_own_loop(cell):
    database = cell.database()
    app = cell.app(database, {"write": write})
    async with (
        Sandbox(database) as sandbox,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        for _ in range(3):
            assert (await client.post("/write")).status_code == 200
        await asserted(cell, sandbox, database, 3)
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", ASYNC, indirect=True)
async def test_concurrent_requests_wait_for_each_other(cell):
    inside = []

    async def slow(use: Use) -> None:
        await use.insert(1)
        inside.append(1)
        assert len(inside) == 1
        await asyncio.sleep(0.01)
        inside.pop()
        await use.insert(2)

    database = cell.database()
    app = cell.app(database, {"slow": slow})
    async with (
        Sandbox(database) as sandbox,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        answers = await asyncio.gather(*[client.post("/slow") for _ in range(5)])
        assert [answer.status_code for answer in answers] == [200] * 5
        await asserted(cell, sandbox, database, 10)


@pytest.mark.parametrize("cell", SYNC, indirect=True)
def test_threads_wait_for_each_other(cell):
    database = cell.database()

    def work(v: int) -> None:
        with unit_of_work() as unit:
            session = unit.session(database)
            session.execute(INSERT)
            session.execute(INSERT)

    with Sandbox(database) as sandbox:
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(work, range(10)))
        with sandbox.session(database) as session:
            assert session.scalar(COUNT) == 20
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", SYNC, indirect=True)
def test_a_wsgi_client(cell):
    database = cell.database()
    statuses = []

    def app(environ, start_response):
        session = gate.get_session(environ)
        session.execute(INSERT)
        start_response("409 Conflict" if environ["PATH_INFO"] == "/refuse" else "200 OK", [])
        return [b""]

    gate = WSGIGate(app, database)

    def call(path: str) -> None:
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": path,
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
        }
        body = gate(environ, lambda status, headers, exc_info=None: statuses.append(status[:3]) or (lambda chunk: None))
        list(body)
        getattr(body, "close", lambda: None)()

    with Sandbox(database) as sandbox:
        for path in ("/", "/refuse", "/"):
            call(path)
        with sandbox.session(database) as session:
            assert session.scalar(COUNT) == 2
    assert statuses == ["200", "409", "200"]
    assert cell.engine.held() == []


@pytest.mark.parametrize("cell", cells(), indirect=True)
def test_background_tasks_and_streams(cell):
    database = cell.database()
    counts = []

    async def work(use: Use) -> None:
        await use.insert(2)

    def endpoint(request):
        use = Use(cell, transept.get_session(request))

        async def later() -> None:
            await Use(cell, transept.get_session(request)).insert(2)

        def later_blocking() -> None:
            transept.get_session(request).execute(INSERT if cell.family.name == "alchemy-sync" else str(INSERT))

        return use, BackgroundTask(later_blocking if cell.blocking else later)

    async def awaiting(request):
        use, task = endpoint(request)
        await use.insert(1)
        return PlainTextResponse("", background=task)

    def blocking(request):
        use, task = endpoint(request)
        use.session.execute(INSERT if cell.family.name == "alchemy-sync" else str(INSERT))
        return PlainTextResponse("", background=task)

    async def streaming(request):
        session = transept.get_session(request)

        async def body():
            counts.append(await Use(cell, session).count())
            yield b"x"

        return StreamingResponse(body())

    app = Starlette(
        routes=[
            Route("/", blocking if cell.blocking else awaiting, methods=["POST"]),
            Route("/stream", streaming),
        ]
    )
    transept = Transept(database, app)
    with Sandbox(database):
        client = TestClient(app)
        assert client.post("/").status_code == 200
        if not cell.blocking:
            assert client.get("/stream").text == "x"
            assert counts == [2]
    assert cell.engine.held() == []


def test_a_websocket(postgres_cell):
    async def endpoint(socket):
        await socket.accept()
        session = transept.get_session(socket)
        while True:
            if await socket.receive_text() == "stop":
                break
            await session.execute(INSERT)
            await socket.send_text("ok")
        await socket.close()

    database = postgres_cell.database()
    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    transept = Transept(database, app)
    with Sandbox(database) as sandbox:
        with TestClient(app).websocket_connect("/") as socket:
            for n in range(3):
                socket.send_text("go")
                assert socket.receive_text() == "ok"
            socket.send_text("stop")
        asyncio.run(asserted(postgres_cell, sandbox, database, 3))
    assert postgres_cell.engine.held() == []


def rows(block) -> int:
    with block as session:
        return session.scalar(COUNT)


async def test_several_databases_of_both_colours_and_two_apps(engines, postgres_cell):
    one = postgres_cell.database(bind_key="one")
    sqlite = engines("sqlite")
    sqlite.reset()
    two = AlchemySync().database(sqlite, "pysqlite", None, bind_key="two", commit_mode="autocommit")

    async def both(request):
        await transept.get_session(request, "one").execute(INSERT)
        await asyncio.to_thread(transept.get_session(request, "two").execute, INSERT)
        return PlainTextResponse("")

    def second(request):
        other.get_session(request, "two").execute(INSERT)
        return PlainTextResponse("")

    app, app_two = Starlette(routes=[Route("/", both)]), Starlette(routes=[Route("/", second)])
    transept, other = Transept([one, two], app), Transept(two, app_two)
    async with Sandbox(one, two) as sandbox:
        for each in (app, app_two, app):
            transport = httpx.ASGITransport(each)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                assert (await client.get("/")).status_code == 200
        async with sandbox.session(one) as session:
            assert await session.scalar(COUNT) == 2
        assert await asyncio.to_thread(rows, sandbox.session(two)) == 3
        assert postgres_cell.engine.held() == sqlite.held() == []
    assert postgres_cell.engine.held() == sqlite.held() == []
    await two.stop()


USERS = ["engine", "maker", "DBConnect", "async_creator"]


@pytest.mark.parametrize("whose", USERS)
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_engines_and_makers_of_the_users_own(postgres_cell, whose, driver):
    url = postgres_cell.engine.url(driver)
    maker = None
    if whose == "async_creator":
        dsn = postgres_cell.engine.dsn()
        connect = asyncpg.connect if driver == "asyncpg" else psycopg.AsyncConnection.connect
        engine = create_async_engine(f"postgresql+{driver}://", async_creator=lambda: connect(dsn))
    else:
        engine = create_async_engine(url)
    settings = {"commit_mode": "autocommit"}
    if whose == "DBConnect":
        database = DBConnect(lambda host: create_async_engine(url), async_sessionmaker, "x", **settings)
    elif whose == "maker":
        maker = async_sessionmaker(engine, expire_on_commit=False)
        database = SQLAlchemyAsyncConfig(session_maker=maker, **settings)
    else:
        database = SQLAlchemyAsyncConfig(engine_instance=engine, **settings)
    app = postgres_cell.app(database, {"write": write})
    with Sandbox(database) as sandbox:
        assert postgres_cell.post(app, "write", "write") == [200, 200]
        asyncio.run(asserted(postgres_cell, sandbox, database, 2))
        assert postgres_cell.engine.held() == []
    assert postgres_cell.engine.held() == []
    assert postgres_cell.engine.open_transactions() == 0
    if maker is not None:
        assert maker.kw["bind"] is engine
    assert engine.pool.checkedout() == 0


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_a_users_sqlite_in_memory_is_the_one_that_there_is(colour):
    """`StaticPool`: another connection would be another, empty database."""
    if colour == "async":
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        database = SQLAlchemyAsyncConfig(engine_instance=engine, commit_mode="autocommit")

        async def create() -> None:
            async with engine.begin() as connection:
                await connection.execute(text("CREATE TABLE held (v integer)"))

        asyncio.run(create())
    else:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        database = SQLAlchemySyncConfig(engine_instance=engine, commit_mode="autocommit")
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE held (v integer)"))
    cell = Cell(AlchemyAsync() if colour == "async" else AlchemySync(), None, "")
    app = cell.app(database, {"write": write})
    for _ in range(2):
        with Sandbox(database) as sandbox:
            assert cell.post(app, "write", "write") == [200, 200]
            asyncio.run(asserted(cell, sandbox, database, 2)) if colour == "async" else None

    if colour == "async":

        async def count() -> int:
            async with engine.connect() as connection:
                return await connection.scalar(COUNT)

        assert asyncio.run(count()) == 0
        asyncio.run(engine.dispose())
    else:
        with engine.connect() as connection:
            assert connection.scalar(COUNT) == 0
        engine.dispose()


@pytest.mark.parametrize("where", ["memory", "file"])
def test_tables_are_made_for_real_and_rows_are_not(tmp_path, where):
    """`create_all` at first use, before the sandbox's transaction begins; `with TestClient` starts and stops it."""
    url = "sqlite+aiosqlite://" if where == "memory" else f"sqlite+aiosqlite:///{tmp_path}/held.db"
    database = SQLAlchemyAsyncConfig(
        connection_string=url, create_all=True, metadata=Base.metadata, commit_mode="autocommit"
    )
    cell = Cell(AlchemyAsync(), None, "")
    counts = []

    async def add(use: Use) -> None:
        counts.append(await use.count())
        use.session.add(Held(v=len(counts)))

    app = cell.app(database, {"add": add})
    for _ in range(2):
        with Sandbox(database):
            assert cell.post(app, "add") == [200]
            for _ in range(2):
                with TestClient(app) as client:
                    assert client.post("/add").status_code == 200
    assert counts == [0, 1, 2] * 2
    asyncio.run(database.stop())


CURSORS = [name for name in cells() if name.startswith("alchemy")]


@pytest.mark.parametrize("cell", CURSORS, indirect=True)
def test_a_cursor_on_the_server(cell):
    read = []

    async def stream(use: Use) -> None:
        for v in range(5):
            await use.run(f"INSERT INTO held VALUES ({v})")
        async for v in await cell.family.cursor(use.session, "SELECT v FROM held ORDER BY v"):
            read.append(v)
        await use.insert(5)

    database = cell.database()
    app = cell.app(database, {"stream": stream})
    with Sandbox(database):
        assert cell.post(app, "stream") == [200]
    assert read == [0, 1, 2, 3, 4]
    assert cell.engine.held() == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_the_drivers_own_connection_is_a_part_too(postgres_cell, driver):
    """COPY, which SQLAlchemy has no words for, from another event loop than the connection's."""
    postgres_cell.driver = driver

    async def copy(use: Use) -> int:
        connection = await use.session.connection()
        driver_connection = (await connection.get_raw_connection()).driver_connection
        if driver == "asyncpg":
            await driver_connection.copy_records_to_table("held", records=[(1,), (2,)])
            async with driver_connection.transaction():
                assert [row["v"] async for row in driver_connection.cursor("SELECT v FROM held")] == [1, 2]
        else:
            async with driver_connection.cursor() as cursor:
                async with cursor.copy("COPY held FROM STDIN") as lines:
                    await lines.write_row((1,))
                    await lines.write_row((2,))
                await cursor.execute("SELECT v FROM held")
                assert [v async for (v,) in cursor] == [1, 2]
        return 200 if use.request.query_params.get("keep") else 400

    database = postgres_cell.database()
    app = postgres_cell.app(database, {"copy": copy})
    with Sandbox(database) as sandbox:
        assert postgres_cell.post(app, "copy", "copy?keep=1") == [400, 200]
        asyncio.run(asserted(postgres_cell, sandbox, database, 2))
    assert postgres_cell.engine.held() == []


def test_fastapi(postgres_cell):
    from fastapi import Depends, FastAPI, HTTPException

    from transept.extensions.fastapi import Transept as FastAPITransept

    database = postgres_cell.database()
    app = FastAPI()
    transept = FastAPITransept(database, app)

    @app.post("/{v}", status_code=201)
    async def write(v: int, session=Depends(transept.provide_session())) -> int:  # noqa: B008
        await session.execute(text("INSERT INTO held VALUES (:v)"), {"v": v})
        if v == 2:
            raise HTTPException(409)
        return await session.scalar(COUNT)

    with Sandbox(database) as sandbox:
        with TestClient(app) as client:
            answers = [client.post(f"/{v}") for v in (1, 2, 3)]
        assert [answer.status_code for answer in answers] == [201, 409, 201]
        assert answers[2].json() == 2
        asyncio.run(asserted(postgres_cell, sandbox, database, 2))
    assert postgres_cell.engine.held() == []
