"""Sessions and connections of raw drivers, and `DBConnect`, in a Litestar app."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from held import COUNT, File, Postgres, calling, insert
from litestar import Litestar, Request, Response, WebSocket, delete, get, post, websocket
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import State
from litestar.exceptions import ClientException
from litestar.testing import TestClient
from litestar_app import config_of
from raw_databases import DRIVERS, RawDatabase, raw_database
from servers.server import Server
from sqlalchemy.ext.asyncio import AsyncSession

from transept import DatabaseUnavailable, ImproperConfigurationError, Registry, current_unit
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.psycopg import PsycopgSyncConfig
from transept.adapters.pymysql import PyMysqlConfig
from transept.adapters.sqlite import SqliteConfig
from transept.config import LitestarConfig
from transept.errors import UniqueViolationError
from transept.extensions.litestar import SQLAlchemyAsyncConfig, Transept
from transept.sql.connection import BlockingConnection, Connection
from transept.sql.session import BlockingSQLSession, SQLSession

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO held VALUES (?)"


@pytest.fixture(params=DRIVERS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database(request.param, request, tmp_path, "held")


@pytest.fixture
def asyncpg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("asyncpg", request, tmp_path, "held")


@pytest.fixture
def lite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("aiosqlite", request, tmp_path, "held")


@pytest.fixture(params=["sqlite", "psycopg", "pymysql"])
def blocking(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A configuration for each blocking driver, with the table."""
    if request.param == "sqlite":
        config: Any = SqliteConfig(pool_config={"database": str(tmp_path / "raw.db")}, commit_mode="autocommit")
    else:
        server: Server = request.getfixturevalue("postgres" if request.param == "psycopg" else "mariadb")
        kind: Any = PsycopgSyncConfig if request.param == "psycopg" else PyMysqlConfig
        config = kind(pool_config={"dsn": server.dsn}, commit_mode="autocommit")
    registry = Registry([config])
    with registry.provide_session() as session:
        session.execute("DROP TABLE IF EXISTS held")
    with registry.provide_session() as session:
        session.execute("CREATE TABLE held (v integer)")
    yield config
    with registry.provide_session() as session:
        session.execute("DROP TABLE held")
    config.close_pool()


def app_of(config: Any, *handlers: Any, **settings: Any) -> Litestar:
    settings = {"openapi_config": None, "logging_config": None, **settings}
    return Litestar(handlers, plugins=[Transept(config)], **settings)


def answer(app: Litestar, path: str = "/", method: str = "GET") -> Any:
    with TestClient(app) as client:
        response = client.request(method, path)
    assert response.status_code < 300, response.text
    return response.json()


# What is injected


def test_session_connection_and_pool_are_injected_by_their_keys(raw: RawDatabase) -> None:
    @post("/")
    async def write(
        request: Request[Any, Any, Any], db_session: SQLSession, db_connection: Connection, db_pool: Any, state: State
    ) -> list[bool]:
        await db_session.execute(INSERT, 1)
        cursor = await db_connection.execute("SELECT v FROM held")
        rows = await cursor.fetchall()
        return [
            type(db_session) is SQLSession,
            type(db_connection) is Connection,
            [tuple(row) for row in rows] == [(1,)],
            db_pool is state.db_pool is await config.provide_pool(),
            db.get_session(request) is db_session is current_unit().session(),
            db.get_connection(request) is db_connection,
        ]

    config = raw.config()
    db = Transept(Registry([config]))
    app = Litestar([write], plugins=[db], openapi_config=None, logging_config=None)
    assert answer(app, method="POST") == [True] * 6
    assert raw.held() == [1]


def test_blocking_ones_are_injected_into_handlers_in_threads(blocking: Any) -> None:
    @post("/{status:int}", sync_to_thread=True)
    def write(
        request: Request[Any, Any, Any],
        db_session: BlockingSQLSession,
        db_connection: BlockingConnection,
        db_pool: Any,
    ) -> Response[list[bool]]:
        status = request.path_params["status"]
        db_session.execute(INSERT, status)
        with db_connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM held")
            assert cursor.fetchone() is not None
        answers = [
            type(db_session) is BlockingSQLSession,
            type(db_connection) is BlockingConnection,
            db_pool is blocking.provide_pool(),
        ]
        return Response(answers, status_code=status)

    with TestClient(app_of(Registry([blocking]), write)) as client:
        assert [client.post(f"/{status}").json() for status in (201, 409)] == [[True] * 3] * 2
    with Registry([blocking]).provide_session() as session:
        assert session.select("SELECT v FROM held") == [{"v": 201}]


STRINGS = """
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import get

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from transept.sql.connection import BlockingConnection, Connection
    from transept.sql.session import BlockingSQLSession, SQLSession


@get("/")
async def session(db_session: SQLSession) -> list[str]:
    return [type(db_session).__name__]


@get("/")
async def connection(db_connection: Connection) -> list[str]:
    return [type(db_connection).__name__]


@get("/", sync_to_thread=True)
def blocking_session(db_session: BlockingSQLSession) -> list[str]:
    return [type(db_session).__name__]


@get("/", sync_to_thread=True)
def blocking_connection(db_connection: BlockingConnection) -> list[str]:
    return [type(db_connection).__name__]


@get("/")
async def orm(db_session: AsyncSession) -> list[str]:
    return [type(db_session).__name__]
"""


@pytest.fixture
def strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of handlers whose annotations are strings."""
    (tmp_path / "raw_handlers_with_strings.py").write_text(STRINGS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("raw_handlers_with_strings")
    del sys.modules["raw_handlers_with_strings"]


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        ("session", "SQLSession"),
        ("connection", "Connection"),
        ("blocking_session", "BlockingSQLSession"),
        ("blocking_connection", "BlockingConnection"),
    ],
)
def test_annotations_may_be_strings_whose_names_are_imported_for_type_checkers_alone(
    lite: RawDatabase, tmp_path: Path, strings: Any, handler: str, kind: str
) -> None:
    sync = SqliteConfig(pool_config={"database": str(tmp_path / "sync.db")})
    config = sync if kind.startswith("Blocking") else lite.config()
    assert answer(app_of(config, getattr(strings, handler))) == [kind]


def test_rows_become_structs_and_values_of_the_driver_become_json(asyncpg: RawDatabase) -> None:
    class User(msgspec.Struct):
        id: int
        email: str

    asyncpg.make("users")
    asyncpg.sees("INSERT INTO users (email) VALUES ('a@example.com')")

    @get("/users")
    async def users(db_session: SQLSession) -> list[User]:
        return await db_session.select("SELECT id, email FROM users", schema_type=User)

    @get("/values")
    async def values(db_session: SQLSession) -> Any:
        """asyncpg has a subclass of UUID."""
        return await db_session.select(
            "SELECT '12345678-1234-5678-1234-567812345678'::uuid AS id, '2026-01-02'::date AS day, 1.5::numeric AS n"
        )

    with TestClient(app_of(asyncpg.config(), users, values)) as client:
        assert client.get("/users").json() == [{"id": 1, "email": "a@example.com"}]
        assert client.get("/values").json() == [
            {"id": "12345678-1234-5678-1234-567812345678", "day": "2026-01-02", "n": "1.5"}
        ]


# Outcomes


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"commit_mode": "autocommit"}, [201]),
        ({"commit_mode": "autocommit_include_redirect"}, [201, 303]),
        ({"commit_mode": "autocommit", "extra_commit_statuses": {409}, "extra_rollback_statuses": {201}}, [409]),
        ({"commit_mode": "manual"}, []),
    ],
)
def test_the_mode_says_which_responses_commit(raw: RawDatabase, settings: dict[str, Any], kept: list[int]) -> None:
    @post("/{status:int}")
    async def write(request: Request[Any, Any, Any], db_session: SQLSession) -> Response[None]:
        status = request.path_params["status"]
        await db_session.execute(INSERT, status)
        return Response(None, status_code=status)

    with TestClient(app_of(raw.config(**settings), write)) as client:
        for status in (201, 303, 409):
            assert client.post(f"/{status}", follow_redirects=False).status_code == status
    assert raw.held() == kept


def test_in_manual_mode_the_app_commits_by_session_or_by_connection(raw: RawDatabase) -> None:
    @post("/session")
    async def by_session(db_session: SQLSession) -> None:
        await db_session.execute(INSERT, 1)
        await db_session.commit()
        await db_session.execute(INSERT, 2)
        await db_session.rollback()

    @post("/connection")
    async def by_connection(db_session: SQLSession, db_connection: Connection) -> None:
        await db_session.execute(INSERT, 3)
        await db_connection.commit()

    with TestClient(app_of(raw.config(commit_mode="manual"), by_session, by_connection)) as client:
        assert [client.post(path).status_code for path in ("/session", "/connection")] == [201, 201]
    assert raw.held() == [1, 3]


def test_an_error_rolls_back(raw: RawDatabase) -> None:
    @post("/")
    async def fail(db_session: SQLSession) -> None:
        await db_session.execute(INSERT, 1)
        raise LookupError

    @delete("/")
    async def refuse(db_session: SQLSession) -> None:
        await db_session.execute(INSERT, 2)
        raise ClientException

    with TestClient(app_of(raw.config(), fail, refuse)) as client:
        assert (client.post("/").status_code, client.delete("/").status_code) == (500, 400)
    assert raw.held() == []


def test_a_violation_is_answered_by_the_apps_handler(raw: RawDatabase) -> None:
    raw.sees("CREATE UNIQUE INDEX held_once ON held (v)")

    def conflict(request: Request[Any, Any, Any], error: UniqueViolationError) -> Response[str]:
        return Response(error.database, status_code=409)

    @post("/")
    async def write(db_session: SQLSession) -> None:
        await db_session.execute(INSERT, 1)
        await db_session.execute(INSERT, 1)

    with TestClient(app_of(raw.config(), write, exception_handlers={UniqueViolationError: conflict})) as client:
        response = client.post("/")
    assert (response.status_code, response.text, raw.held()) == (409, "default", [])


def test_a_violation_that_shows_at_commit_is_answered_by_the_apps_handler(asyncpg: RawDatabase) -> None:
    asyncpg.sees("ALTER TABLE held ADD CONSTRAINT once UNIQUE (v) DEFERRABLE INITIALLY DEFERRED")

    def conflict(request: Request[Any, Any, Any], error: UniqueViolationError) -> Response[str]:
        return Response("conflict", status_code=409)

    @post("/")
    async def write(db_session: SQLSession) -> None:
        await db_session.execute(INSERT, 1)
        await db_session.execute(INSERT, 1)

    for middleware in ([], [lambda app: app]):
        settings: Any = {"exception_handlers": {UniqueViolationError: conflict}, "middleware": middleware}
        with TestClient(app_of(asyncpg.config(), write, **settings)) as client:
            assert client.post("/").status_code == 409
        with TestClient(app_of(asyncpg.config(), write, middleware=middleware)) as client:
            assert client.post("/").status_code == 500
    assert asyncpg.held() == []


async def test_a_database_that_is_down_is_answered_503_or_by_the_apps_handler() -> None:
    @get("/")
    async def look(db_session: SQLSession) -> None:
        await db_session.execute("SELECT 1")

    @get("/unused")
    async def unused(db_session: SQLSession, db_connection: Connection) -> None: ...

    def nowhere() -> AsyncpgConfig:
        return AsyncpgConfig(pool_config={"dsn": "postgresql://nobody@127.0.0.1:1/nothing"})

    def teapot(request: Request[Any, Any, Any], error: Exception) -> Response[None]:
        return Response(None, status_code=418)

    async with calling(app_of(nowhere(), look, unused)) as client:
        assert [(await client.get(path)).status_code for path in ("/", "/unused")] == [503, 200]
    async with calling(app_of(nowhere(), look, exception_handlers={DatabaseUnavailable: teapot})) as client:
        assert (await client.get("/")).status_code == 418


# Names


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"bind_key": "sql"}, ("sql_session", "sql_connection", "sql_pool")),
        ({"session_key": "mine"}, ("mine", "mine_connection", "mine_pool")),
        ({"connection_key": "link"}, ("db_session", "link", "db_pool")),
        ({"extension_config": {"litestar": {"session_key": "mine"}}}, ("mine", "mine_connection", "mine_pool")),
        (
            {"extension_config": {"litestar": LitestarConfig(session_key="a", connection_key="b", pool_key="c")}},
            ("a", "b", "c"),
        ),
    ],
)
def test_keys_follow_from_the_name_or_are_chosen(
    asyncpg: RawDatabase, settings: dict[str, Any], names: tuple[str, str, str]
) -> None:
    app = app_of(asyncpg.config(**settings))
    assert set(app.dependencies) == set(names)

    session, connection, pool = names
    written: dict[str, Any] = {}
    exec(
        f"async def look({session}: SQLSession, {connection}: Connection, {pool}: Any, state: State) -> bool:\n"
        f"    await {connection}.execute('SELECT 1')\n"
        f"    return state[{pool!r}] is {pool}",
        globals(),
        written,
    )
    app.register(get("/")(written["look"]))
    assert answer(app) is True


def test_settings_for_litestar_are_the_databases(asyncpg: RawDatabase) -> None:
    settings = LitestarConfig(commit_mode="autocommit", extra_commit_statuses={409}, session_key="sql")
    config = AsyncpgConfig(pool_config=asyncpg.pool_config, extension_config={"litestar": settings})

    @post("/{status:int}")
    async def write(request: Request[Any, Any, Any], sql: SQLSession) -> Response[None]:
        await sql.execute(INSERT, request.path_params["status"])
        return Response(None, status_code=request.path_params["status"])

    with TestClient(app_of(config, write)) as client:
        assert [client.post(f"/{status}").status_code for status in (201, 400, 409)] == [201, 400, 409]
    assert asyncpg.held() == [201, 409]


def test_an_unknown_setting_for_litestar_is_refused_with_the_nearest() -> None:
    settings: Any = {"litestar": {"comit_mode": "autocommit"}}
    with pytest.raises(ImproperConfigurationError, match=r"extension_config\['litestar'\].*Did you mean 'commit_mode'"):
        AsyncpgConfig(extension_config=settings)


@pytest.mark.parametrize("key", ["session_key", "connection_key", "pool_key"])
@pytest.mark.parametrize("name", ["request", "my-session", "class"])
def test_a_key_that_no_handler_can_ask_for_is_refused_with_the_app(lite: RawDatabase, key: str, name: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=f"{key}='{name}'"):
        app_of(lite.config(**{key: name}))


def test_disable_di_injects_nothing_and_get_session_works(raw: RawDatabase) -> None:
    db = Transept(raw.config(disable_di=True))

    @post("/", dependencies={"session": db.provide_session(), "connection": db.provide_connection()})
    async def write(request: Request[Any, Any, Any], session: SQLSession, connection: Connection) -> bool:
        await session.execute(INSERT, 1)
        return session is db.get_session(request) and connection is db.get_connection(request)

    app = Litestar([write], plugins=[db], openapi_config=None, logging_config=None)
    assert not app.dependencies
    assert answer(app, method="POST") is True
    assert raw.held() == [1]


def test_a_clash_of_raw_keys_names_both_databases_and_both_settings(asyncpg: RawDatabase, file: File) -> None:
    second = asyncpg.config(bind_key="b", connection_key="db_engine")
    words = r"'default' \(engine_dependency_key\) and 'b' \(connection_key\) both have 'db_engine'"
    with pytest.raises(ImproperConfigurationError, match=words):
        app_of([config_of(file), second])
    with pytest.raises(ImproperConfigurationError, match=r"has 'db_pool' already, .* database 'default'"):
        app_of(asyncpg.config(), dependencies={"db_pool": lambda: None})


# Several databases


def test_two_raw_databases_are_settled_together(asyncpg: RawDatabase, lite: RawDatabase) -> None:
    registry = Registry()
    registry.add_config(asyncpg.config())
    registry.add_config(lite.config(), name="lite")

    @post("/{status:int}")
    async def write(
        request: Request[Any, Any, Any], db_session: SQLSession, lite_connection: Connection, lite_session: SQLSession
    ) -> Response[None]:
        status = request.path_params["status"]
        await db_session.execute(INSERT, status)
        await lite_connection.execute(f"INSERT INTO held VALUES ({status})")
        return Response(None, status_code=status)

    with TestClient(app_of(registry, write)) as client:
        assert [client.post(f"/{status}").status_code for status in (201, 400)] == [201, 400]
    assert (asyncpg.held(), lite.held()) == ([201], [201])


def test_sqlalchemy_and_a_raw_database_are_settled_together(raw: RawDatabase, file: File) -> None:
    @post("/{status:int}")
    async def write(
        request: Request[Any, Any, Any], db_session: AsyncSession, raw_session: SQLSession
    ) -> Response[None]:
        status = request.path_params["status"]
        await db_session.execute(insert(status))
        await raw_session.execute(INSERT, status)
        return Response(None, status_code=status)

    with TestClient(app_of([config_of(file), raw.config(bind_key="raw")], write)) as client:
        assert [client.post(f"/{status}").status_code for status in (201, 400)] == [201, 400]
    assert (file.held(), raw.held()) == ([201], [201])


# Lifecycle


def test_pools_lie_on_the_apps_state_at_first_use_and_are_closed_at_shutdown(asyncpg: RawDatabase) -> None:
    @get("/")
    async def look(db_session: SQLSession, state: State) -> bool:
        await db_session.execute("SELECT 1")
        return state.db_pool.get_size() == 1

    app = app_of(asyncpg.config(), look)
    for _ in range(2):
        assert answer(app) is True
        assert app.state.db_pool.is_closing()


async def test_without_a_lifespan_pools_start_at_first_use(raw: RawDatabase) -> None:
    @post("/")
    async def write(db_session: SQLSession) -> None:
        await db_session.execute(INSERT, 1)

    config = raw.config()
    async with calling(app_of(config, write)) as client:
        assert [(await client.post("/")).status_code for _ in range(2)] == [201, 201]
    await config.close_pool()
    assert raw.held() == [1, 1]


def test_a_registry_serves_two_apps(raw: RawDatabase) -> None:
    registry = Registry([raw.config()])

    @post("/")
    async def write(db_session: SQLSession, db_pool: Any, state: State) -> bool:
        await db_session.execute(INSERT, 1)
        return state.db_pool is db_pool

    one, two = app_of(registry, write), app_of(registry, write)
    with TestClient(one) as first, TestClient(two) as second:
        assert [first.post("/").json(), second.post("/").json(), first.post("/").json()] == [True] * 3
    assert raw.held() == [1, 1, 1]


def test_an_app_starts_without_its_server_unless_it_is_eager() -> None:
    @get("/")
    async def nothing() -> int:
        return 1

    nowhere: Any = {"dsn": "postgresql://nobody@127.0.0.1:1/nothing"}
    assert answer(app_of(AsyncpgConfig(pool_config=nowhere), nothing)) == 1
    with (
        pytest.raises(BaseException) as caught,  # noqa: PT011 - in a group, of the client's
        TestClient(app_of(AsyncpgConfig(pool_config=nowhere, eager=True), nothing)),
    ):
        raise AssertionError("it has started")
    assert "it has started" not in repr(caught.value)


@pytest.mark.parametrize("lifespan", [True, False])
def test_the_pool_of_a_blocking_database_lies_on_the_apps_state(blocking: Any, lifespan: bool) -> None:
    @post("/", sync_to_thread=True)
    def write(db_session: BlockingSQLSession, db_pool: Any, state: State) -> bool:
        db_session.execute(INSERT, 1)
        return state.db_pool is db_pool

    blocking.close_pool()
    client = TestClient(app_of(blocking, write))
    if lifespan:
        with client:
            assert client.post("/").json() is True
    else:
        assert client.post("/").json() is True


# Beside requests


def test_provide_session_of_the_registry_is_independent_of_the_request(raw: RawDatabase) -> None:
    registry = Registry()
    config = registry.add_config(raw.config(commit_mode="manual"))

    @post("/")
    async def write(db_session: SQLSession) -> bool:
        async with registry.provide_session(config) as own:
            await own.execute(INSERT, 2)
        return own is not db_session

    assert answer(app_of(registry, write), method="POST") is True
    assert raw.held() == [2]


def test_a_websocket_has_a_unit_for_each_message(raw: RawDatabase) -> None:
    @websocket("/")
    async def serve(socket: WebSocket[Any, Any, Any], db_session: SQLSession) -> None:
        await socket.accept()
        await db_session.execute(INSERT, 0)
        while True:
            v = await socket.receive_json()
            assert raw.held()[-1] == v - 1
            await db.get_session(socket).execute(INSERT, v)
            await socket.send_json(v)

    db = Transept(raw.config())
    app = Litestar([serve], plugins=[db], openapi_config=None, logging_config=None)
    with TestClient(app) as client, client.websocket_connect("/") as connection:
        for v in (1, 2):
            connection.send_json(v)
            assert connection.receive_json() == v
    assert raw.held() == [0, 1, 2]


def test_a_background_task_has_a_fresh_unit(raw: RawDatabase) -> None:
    @post("/")
    async def write(request: Request[Any, Any, Any], db_session: SQLSession) -> Response[None]:
        async def later() -> None:
            assert raw.held() == [1]
            await db.get_session(request).execute(INSERT, 2)

        await db_session.execute(INSERT, 1)
        return Response(None, status_code=201, background=BackgroundTask(later))

    db = Transept(raw.config())
    with TestClient(Litestar([write], plugins=[db], openapi_config=None, logging_config=None)) as client:
        assert client.post("/").status_code == 201
    assert raw.held() == [1, 2]


# DBConnect


async def test_a_dbconnect_is_injected_when_what_it_awaits_is_there(pg: Postgres) -> None:
    awaited: list[str] = []

    async def find_master(connect: Any) -> None:
        awaited.append("asked")
        await connect.change_host("localhost")

    @post("/{status:int}")
    async def write(request: Request[Any, Any, Any], db_session: AsyncSession) -> Response[int]:
        await db_session.execute(insert(request.path_params["status"]))
        count = await db_session.scalar(COUNT) or 0
        return Response(count, status_code=request.path_params["status"])

    database = pg.dbconnect(host=None, before_create_session_handler=find_master)
    async with calling(app_of(database, write)) as client:
        assert [(await client.post(f"/{status}")).status_code for status in (201, 400)] == [201, 400]
    assert (database.host, awaited) == ("localhost", ["asked", "asked"])
    assert pg.held() == [201]
    await database.close()


def test_a_dbconnect_is_closed_at_shutdown_and_found_by_the_plugin(pg: Postgres) -> None:
    database = pg.dbconnect()
    db = Transept(database)

    @post("/", dependencies={"own": db.provide_async_session()})
    async def write(db_session: AsyncSession, own: AsyncSession) -> bool:
        await db_session.execute(insert(1))
        async with db.with_async_session() as beside:
            await beside.execute(insert(2))
        return own is db_session

    app = Litestar([write], plugins=[db], openapi_config=None, logging_config=None)
    assert answer(app, method="POST") is True
    assert (pg.held(), pg.disposed) == ([1, 2], ["127.0.0.1"])


def test_a_dbconnect_may_be_annotated_by_a_string(pg: Postgres, strings: Any) -> None:
    assert answer(app_of(pg.dbconnect(), strings.orm)) == ["AsyncSession"]


def test_a_dbconnect_stands_beside_other_databases(pg: Postgres, file: File, lite: RawDatabase) -> None:
    @post("/")
    async def write(db_session: AsyncSession, master_session: AsyncSession, raw_session: SQLSession) -> None:
        await db_session.execute(insert(1))
        await master_session.execute(insert(2))
        await raw_session.execute(INSERT, 3)

    configs = [config_of(file), pg.dbconnect(bind_key="master"), lite.config(bind_key="raw")]
    assert answer(app_of(configs, write), method="POST") is None
    assert (file.held(), pg.held(), lite.held()) == ([1], [2], [3])


def test_the_names_of_sqlalchemy_and_of_raw_sessions_are_all_known(lite: RawDatabase) -> None:
    orm = SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://")
    names = app_of([orm, lite.config(bind_key="raw")]).signature_namespace
    assert {"AsyncSession", "AsyncEngine", "SQLSession"} <= set(names)
