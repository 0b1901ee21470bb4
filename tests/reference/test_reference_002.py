"""Each snippet of the SQL-first reference for Starlette, unchanged but for its imports and for where the servers are.

``@app.route`` is no more in Starlette; ``@route(app, ...)`` stands for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from held import eventually
from raw_databases import DRIVERS, RawDatabase, raw_database
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from transept import ImproperConfigurationError
from transept import Registry as SQLSpec
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.asyncpg import AsyncpgConfig
from transept.config import StarletteConfig
from transept.extensions.starlette import Transept as SQLSpecPlugin

Endpoint = Callable[..., Any]


@pytest.fixture(params=DRIVERS)
def here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database(request.param, request, tmp_path, "users")


@pytest.fixture(params=[driver for driver in DRIVERS if driver != "aiosqlite"])
def server_here(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database(request.param, request, tmp_path, "users")


@pytest.fixture
def pg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("asyncpg", request, tmp_path, "users")


@pytest.fixture
def lite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("aiosqlite", request, tmp_path, "users")


@pytest.fixture
def my(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("asyncmy", request, tmp_path, "users")


def route(app: Starlette, path: str, methods: list[str] | None = None) -> Callable[[Endpoint], Endpoint]:
    def add(endpoint: Endpoint) -> Endpoint:
        app.router.routes.append(Route(path, endpoint, methods=methods))
        return endpoint

    return add


def websocket_route(app: Starlette, path: str) -> Callable[[Endpoint], Endpoint]:
    def add(endpoint: Endpoint) -> Endpoint:
        app.router.routes.append(WebSocketRoute(path, endpoint))
        return endpoint

    return add


# Quick Start


def test_quick_start(here: RawDatabase) -> None:
    here.sees("INSERT INTO users (email) VALUES ('a@example.com')")
    sqlspec = SQLSpec()
    config = here.config_class(
        pool_config=here.pool_config,
        extension_config={
            "starlette": {
                "commit_mode": "autocommit",
                "session_key": "db",
            }
        },
    )
    sqlspec.add_config(config, name="default")

    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/users")
    async def list_users(request):
        db = db_ext.get_session(request)
        result = await db.execute("SELECT id, email FROM users ORDER BY id")
        return JSONResponse({"users": result.all()})

    with TestClient(app) as client:
        assert client.get("/users").json() == {"users": [{"id": 1, "email": "a@example.com"}]}


# Configuration


def configured(pg: RawDatabase) -> AsyncpgConfig:
    return AsyncpgConfig(
        pool_config=pg.pool_config,
        extension_config={
            "starlette": StarletteConfig(
                commit_mode="autocommit",
                session_key="db",
                connection_key="db_connection",
                pool_key="db_pool",
                extra_commit_statuses={201, 202},
                extra_rollback_statuses={409},
            )
        },
    )


def app_that_answers(config: Any) -> Starlette:
    """It adds a user and answers with the status that it is asked for."""
    app = Starlette()
    sqlspec = SQLSpec()
    sqlspec.add_config(config)
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/{status:int}", methods=["POST"])
    async def create_user(request):
        await db_ext.get_session(request).execute(f"INSERT INTO users (email) VALUES ('{request.url.path[1:]}')")
        return JSONResponse(None, status_code=request.path_params["status"])

    return app


def kept_of(config: Any, here: RawDatabase, *statuses: int) -> list[int]:
    """With which of these statuses a user was kept."""
    with TestClient(app_that_answers(config), follow_redirects=False) as client:
        for status in statuses:
            assert client.post(f"/{status}").status_code == status
    return [int(email) for email in here.emails()]


def test_configuration(pg: RawDatabase) -> None:
    assert kept_of(configured(pg), pg, 200, 201, 202, 302, 404, 409, 500) == [200, 201, 202]


def test_configured_keys_name_what_lies_on_the_state(pg: RawDatabase) -> None:
    app = Starlette()
    sqlspec = SQLSpec()
    sqlspec.add_config(configured(pg))
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/")
    async def look(request):
        assert request.state.db is db_ext.get_session(request)
        assert request.state.db_connection is db_ext.get_connection(request)
        assert await app.state.db_pool.fetchval("SELECT 1") == 1
        return JSONResponse(await request.state.db_connection.fetchval("SELECT 2"))

    with TestClient(app) as client:
        assert client.get("/").json() == 2


# Configuration Options


def test_commit_mode_is_manual_by_default(here: RawDatabase) -> None:
    config = here.config_class(pool_config=here.pool_config)
    assert config.commit_mode == "manual"
    assert kept_of(config, here, 200, 201) == []


@pytest.mark.parametrize(
    ("commit_mode", "kept"),
    [("autocommit", [200, 201, 299]), ("autocommit_include_redirect", [200, 201, 299, 303, 399])],
)
def test_commit_mode_says_which_statuses_commit(here: RawDatabase, commit_mode: str, kept: list[int]) -> None:
    config = here.config(extension_config={"starlette": {"commit_mode": commit_mode}}, commit_mode="manual")
    assert kept_of(config, here, 200, 201, 299, 303, 399, 400, 404, 500) == kept


def test_session_connection_and_pool_keys_have_the_documented_defaults(here: RawDatabase) -> None:
    config = here.config_class(pool_config=here.pool_config)
    app = Starlette()
    db_ext = SQLSpecPlugin(config, app)
    assert (config.session_key, config.connection_key, config.pool_key) == ("db_session", "db_connection", "db_pool")

    @route(app, "/")
    async def look(request):
        same = request.state.db_session is db_ext.get_session(request)
        await request.state.db_session.execute("SELECT 1")
        return JSONResponse([same, request.state.db_connection is db_ext.get_connection(request)])

    with TestClient(app) as client:
        assert client.get("/").json() == [True, True]
        assert app.state.db_pool is not None


def test_extra_statuses_are_empty_by_default_and_win_over_the_range(here: RawDatabase) -> None:
    plain = here.config_class(pool_config=here.pool_config)
    assert not plain.extra_commit_statuses
    assert not plain.extra_rollback_statuses
    config = here.config(extra_commit_statuses={404, 303}, extra_rollback_statuses={201})
    assert kept_of(config, here, 200, 201, 303, 304, 404, 400) == [200, 303, 404]


# Multi-Database Configuration


def two_databases(pg: RawDatabase, lite: RawDatabase) -> SQLSpec:
    sqlspec = SQLSpec()
    sqlspec.add_config(
        AsyncpgConfig(
            pool_config=pg.pool_config,
            extension_config={
                "starlette": {
                    "session_key": "primary",
                    "connection_key": "primary_connection",
                    "pool_key": "primary_pool",
                    "commit_mode": "autocommit",
                }
            },
        )
    )

    sqlspec.add_config(
        AiosqliteConfig(
            pool_config=lite.pool_config,
            extension_config={
                "starlette": {
                    "session_key": "analytics",
                    "connection_key": "analytics_connection",
                    "pool_key": "analytics_pool",
                    "commit_mode": "manual",
                }
            },
        )
    )
    return sqlspec


def test_multi_database_configuration(pg: RawDatabase, lite: RawDatabase) -> None:
    pg.sees("INSERT INTO users (email) VALUES ('a'), ('b')")
    lite.make("page_views")
    sqlspec = two_databases(pg, lite)
    db_ext = SQLSpecPlugin(sqlspec)

    async def report(request: Request) -> JSONResponse:
        core = db_ext.get_session(request, "primary")
        analytics = db_ext.get_session(request, "analytics")
        total_users = await core.select_value("SELECT COUNT(*) FROM users")
        await analytics.execute("INSERT INTO page_views(path) VALUES (:path)", {"path": request.url.path})
        analytics_conn = db_ext.get_connection(request, "analytics")
        await analytics_conn.commit()
        return JSONResponse({"users": total_users})

    app = Starlette(routes=[Route("/reports", report)])
    db_ext.init_app(app)

    with TestClient(app) as client:
        assert client.get("/reports").json() == {"users": 2}
    assert lite.sees("SELECT path FROM page_views") == [("/reports",)]


# Key Requirements


def test_the_first_registered_configuration_is_the_implicit_default(pg: RawDatabase, lite: RawDatabase) -> None:
    app = Starlette()
    db_ext = SQLSpecPlugin(two_databases(pg, lite), app)

    @route(app, "/")
    async def look(request):
        default = db_ext.get_session(request)
        return JSONResponse([default is db_ext.get_session(request, key) for key in ("primary", "analytics")])

    with TestClient(app) as client:
        assert client.get("/").json() == [True, False]


@pytest.mark.parametrize("setting", ["session_key", "connection_key", "pool_key"])
def test_keys_must_be_unique_and_the_error_says_which_are_not(setting: str, pg: RawDatabase) -> None:
    def config(name: str) -> AsyncpgConfig:
        keys = {"session_key": name, "connection_key": f"{name}_connection", "pool_key": f"{name}_pool"}
        return AsyncpgConfig(
            pool_config=pg.pool_config, extension_config={"starlette": {**keys, setting: "shared"}}, bind_key=name
        )

    sqlspec = SQLSpec()
    sqlspec.add_config(config("one"))
    with pytest.raises(ImproperConfigurationError, match=r"Duplicate state keys found: .*'one'.*'two'.*'shared'"):
        sqlspec.add_config(config("two"))


def test_keys_are_derived_from_the_session_key() -> None:
    config = AsyncpgConfig(extension_config={"starlette": {"session_key": "analytics"}})
    assert (config.connection_key, config.pool_key) == ("analytics_connection", "analytics_pool")


# Troubleshooting


def test_no_configuration_found_for_a_key_that_is_misspelled(pg: RawDatabase, lite: RawDatabase) -> None:
    app = Starlette()
    db_ext = SQLSpecPlugin(two_databases(pg, lite), app)

    @route(app, "/")
    async def look(request):
        db_ext.get_session(request, "analitics")

    with (
        TestClient(app) as client,
        pytest.raises(ImproperConfigurationError, match=r"No configuration found for key 'analitics'.*'analytics'"),
    ):
        client.get("/")


def test_the_pool_is_there_during_the_lifespan_and_closed_at_its_end(server_here: RawDatabase) -> None:
    count = {
        "postgres": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
        "mariadb": "SELECT count(*) FROM information_schema.processlist WHERE db = database() "
        "AND id <> connection_id()",
    }

    async def connections_are(number: int) -> bool:
        return await eventually(lambda: server_here.sees(count[server_here.kind]) == [(number,)])

    app = app_that_answers(server_here.config())
    assert asyncio.run(connections_are(0))
    with TestClient(app) as client:
        client.post("/200")
        assert asyncio.run(connections_are(1))
    assert asyncio.run(connections_are(0))


# Commit Modes


def test_manual_mode(here: RawDatabase) -> None:
    app = Starlette()
    sqlspec = SQLSpec()
    config = here.config_class(
        pool_config=here.pool_config,
        extension_config={"starlette": {"commit_mode": "manual"}},
    )

    sqlspec.add_config(config)
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/users", methods=["POST"])
    async def create_user(request):
        db = db_ext.get_session(request)
        data = await request.json()

        await db.execute(
            "INSERT INTO users (email) VALUES ($1)",
            data["email"],
        )

        conn = db_ext.get_connection(request)
        await conn.commit()

        return JSONResponse({"created": True}, status_code=201)

    with TestClient(app) as client:
        assert client.post("/users", json={"email": "a@example.com"}).status_code == 201
        assert here.emails() == ["a@example.com"]


def test_autocommit_mode(here: RawDatabase) -> None:
    app = Starlette()
    sqlspec = SQLSpec()
    config = here.config_class(
        pool_config=here.pool_config,
        extension_config={"starlette": {"commit_mode": "autocommit"}},
    )

    sqlspec.add_config(config)
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/users", methods=["POST"])
    async def create_user(request):
        db = db_ext.get_session(request)
        data = await request.json()

        await db.execute(
            "INSERT INTO users (email) VALUES ($1)",
            data["email"],
        )

        return JSONResponse({"created": True}, status_code=201)

    with TestClient(app) as client:
        assert client.post("/users", json={"email": "a@example.com"}).status_code == 201
        assert here.emails() == ["a@example.com"]


def test_autocommit_with_redirects(here: RawDatabase) -> None:
    app = Starlette()
    sqlspec = SQLSpec()
    config = here.config_class(
        pool_config=here.pool_config,
        extension_config={"starlette": {"commit_mode": "autocommit_include_redirect"}},
    )

    sqlspec.add_config(config)
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/users", methods=["POST"])
    async def create_user(request):
        db = db_ext.get_session(request)
        data = await request.json()

        await db.execute(
            "INSERT INTO users (email) VALUES ($1)",
            data["email"],
        )

        return RedirectResponse(url="/users", status_code=303)

    with TestClient(app, follow_redirects=False) as client:
        assert client.post("/users", json={"email": "a@example.com"}).status_code == 303
        assert here.emails() == ["a@example.com"]


# Multi-Database Configuration, by key


def test_multi_database_configuration_by_key(pg: RawDatabase, my: RawDatabase) -> None:
    pg.sees("INSERT INTO users (email) VALUES ('a'), ('b')")
    my.make("events")
    my.sees("INSERT INTO events VALUES (1), (2), (3)")
    sqlspec = SQLSpec()

    pg_config = AsyncpgConfig(
        pool_config=pg.pool_config,
        extension_config={
            "starlette": {
                "commit_mode": "autocommit",
                "session_key": "pg_db",
            }
        },
    )

    mysql_config = AsyncmyConfig(
        pool_config=my.pool_config,
        extension_config={
            "starlette": {
                "commit_mode": "autocommit",
                "session_key": "mysql_db",
            }
        },
    )

    sqlspec.add_config(pg_config, name="postgres")
    sqlspec.add_config(mysql_config, name="mysql")

    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/dashboard")
    async def dashboard(request):
        pg_db = db_ext.get_session(request, key="pg_db")
        mysql_db = db_ext.get_session(request, key="mysql_db")

        users = await pg_db.execute("SELECT COUNT(*) FROM users")
        events = await mysql_db.execute("SELECT COUNT(*) FROM events")

        return JSONResponse(
            {
                "users": users.scalar(),
                "events": events.scalar(),
            }
        )

    @route(app, "/same")
    async def same(request):
        names = {"postgres": "pg_db", "mysql": "mysql_db"}
        return JSONResponse(
            [db_ext.get_session(request, a) is db_ext.get_session(request, b) for a, b in names.items()]
        )

    with TestClient(app) as client:
        assert client.get("/dashboard").json() == {"users": 2, "events": 3}
        assert client.get("/same").json() == [True, True]


# "Each database maintains its own pool, session cache, and transaction handling"


def test_each_database_has_its_own_pool_sessions_and_transactions(pg: RawDatabase, lite: RawDatabase) -> None:
    sqlspec = SQLSpec()
    sqlspec.add_config(pg.config(commit_mode="autocommit"), name="one")
    sqlspec.add_config(lite.config(commit_mode="autocommit", extra_rollback_statuses={201}), name="two")
    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/", methods=["POST"])
    async def write(request):
        for key in ("one", "two"):
            await db_ext.get_session(request, key).execute("INSERT INTO users (email) VALUES ($1)", key)
        assert app.state.one_pool is not app.state.two_pool
        assert request.state.one_session is not request.state.two_session
        return JSONResponse(None, status_code=201)

    with TestClient(app) as client:
        assert client.post("/").status_code == 201
    assert (pg.emails(), lite.emails()) == (["one"], [])


# Session Caching


def test_session_caching(here: RawDatabase) -> None:
    app = Starlette()
    db_ext = SQLSpecPlugin(here.config(), app)

    @route(app, "/example")
    async def example(request):
        db1 = db_ext.get_session(request)
        db2 = db_ext.get_session(request)

        assert db1 is db2

        await db1.execute("INSERT INTO users (email) VALUES ($1)", "test@example.com")

        result = await db2.execute("SELECT * FROM users WHERE email = $1", "test@example.com")

        return JSONResponse({"user": result.get_first()})

    with TestClient(app) as client:
        assert client.get("/example").json() == {"user": {"id": 1, "email": "test@example.com"}}


# Connection Access


def test_connection_access(here: RawDatabase) -> None:
    app = Starlette()
    db_ext = SQLSpecPlugin(here.config(), app)

    @route(app, "/raw")
    async def raw_query(request):
        conn = db_ext.get_connection(request)

        cursor = await conn.cursor()
        await cursor.execute("SELECT 1")
        result = await cursor.fetchone()

        return JSONResponse({"result": result})

    with TestClient(app) as client:
        assert client.get("/raw").json() == {"result": [1]}


# Lifecycle Management


async def count_users(request: Request) -> JSONResponse:
    return JSONResponse(await request.state.db_session.select_value("SELECT COUNT(*) FROM users"))


def test_lifecycle_management(here: RawDatabase) -> None:
    sqlspec = SQLSpec()
    sqlspec.add_config(here.config())

    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    assert db_ext.get_config() is sqlspec.get_config()
    route(app, "/")(count_users)
    with TestClient(app) as client:
        assert app.state.db_pool is not None
        assert client.get("/").json() == 0


def test_manual_control_over_the_lifecycle(here: RawDatabase) -> None:
    sqlspec = SQLSpec()
    sqlspec.add_config(here.config())
    seen = []

    db_ext = SQLSpecPlugin(sqlspec)

    @asynccontextmanager
    async def lifespan(app: Starlette):
        async with db_ext.lifespan(app):
            seen.append(app.state.db_pool is not None)
            yield
            seen.append(True)

    app = Starlette(lifespan=lifespan)
    db_ext.init_app(app)

    route(app, "/")(count_users)
    with TestClient(app) as client:
        assert client.get("/").json() == 0
    assert seen == [True, True]


def test_the_registry_has_sessions_in_a_lifespan_by_hand(here: RawDatabase) -> None:
    sqlspec = SQLSpec()
    sqlspec.add_config(here.config())
    db_ext = SQLSpecPlugin(sqlspec)

    @asynccontextmanager
    async def lifespan(app: Starlette):
        async with db_ext.lifespan(app), sqlspec.provide_session() as db:
            assert await db.select_value("SELECT COUNT(*) FROM users") == 0
            yield

            seen.append("started")

    seen: list[str] = []
    with TestClient(Starlette(lifespan=lifespan)):
        assert seen == []
    assert seen == ["started"]


# Testing


def test_users_endpoint():
    sqlspec = SQLSpec()
    config = AiosqliteConfig(
        pool_config={"database": ":memory:"},
        extension_config={"starlette": {"commit_mode": "autocommit"}},
    )
    sqlspec.add_config(config)

    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/users")
    async def list_users(request):
        db = db_ext.get_session(request)
        await db.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, email TEXT)")
        await db.execute("INSERT INTO users (email) VALUES (?)", ("test@example.com",))
        result = await db.execute("SELECT * FROM users")
        return JSONResponse({"users": result.all()})

    db_ext.init_app(app)

    with TestClient(app) as client:
        response = client.get("/users")
        assert response.status_code == 200
        assert len(response.json()["users"]) == 1


# Background Tasks


def test_background_tasks(server_here: RawDatabase) -> None:
    background_task(server_here, now="NOW()")


def test_background_tasks_on_sqlite(lite: RawDatabase) -> None:
    """SQLite has no NOW()."""
    background_task(lite, now="CURRENT_TIMESTAMP")


def background_task(here: RawDatabase, now: str) -> None:
    here.make("email_log")
    sqlspec = SQLSpec()
    config = sqlspec.add_config(here.config())
    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    async def send_email(email: str, config, sqlspec):
        async with sqlspec.provide_session(config) as db:
            await db.execute(
                f"INSERT INTO email_log (email, sent_at) VALUES ($1, {now})",
                email,
            )

    @route(app, "/signup", methods=["POST"])
    async def signup(request):
        data = await request.json()
        db = db_ext.get_session(request)

        await db.execute(
            "INSERT INTO users (email) VALUES ($1)",
            data["email"],
        )

        task = BackgroundTask(
            send_email,
            email=data["email"],
            config=config,
            sqlspec=sqlspec,
        )

        return JSONResponse({"created": True}, status_code=201, background=task)

    with TestClient(app) as client:
        assert client.post("/signup", json={"email": "a@example.com"}).status_code == 201
        assert here.emails() == ["a@example.com"]
        assert here.sees("SELECT email, sent_at IS NOT NULL FROM email_log") == [("a@example.com", True)]


# WebSocket Support


def test_websocket_support(here: RawDatabase) -> None:
    here.make("messages")
    here.sees("INSERT INTO messages (content) VALUES ('hello world'), ('other')")
    sqlspec = SQLSpec()
    config = sqlspec.add_config(here.config())
    app = Starlette()
    SQLSpecPlugin(sqlspec, app)

    @websocket_route(app, "/ws")
    async def websocket_endpoint(websocket: WebSocket):
        await websocket.accept()

        async with sqlspec.provide_session(config) as db:
            while True:
                data = await websocket.receive_text()
                result = await db.execute(
                    "SELECT * FROM messages WHERE content LIKE $1",
                    f"%{data}%",
                )
                await websocket.send_json({"messages": result.all()})

    with (
        TestClient(app) as client,
        suppress(WebSocketDisconnect),  # which the endpoint does not catch
        client.websocket_connect("/ws") as websocket,
    ):
        websocket.send_text("ello")
        assert websocket.receive_json() == {"messages": [{"id": 1, "content": "hello world"}]}
        websocket.send_text("o")
        assert len(websocket.receive_json()["messages"]) == 2


# Error Handling


def test_error_handling(here: RawDatabase) -> None:
    app = Starlette()
    db_ext = SQLSpecPlugin(here.config(), app)

    @route(app, "/users", methods=["POST"])
    async def create_user(request):
        db = db_ext.get_session(request)
        data = await request.json()

        await db.execute(
            "INSERT INTO users (email) VALUES ($1)",
            data["email"],
        )

        if not data.get("verified"):
            raise ValueError("Email must be verified")

        return JSONResponse({"created": True}, status_code=201)

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/users", json={"email": "a@example.com"}).status_code == 500
        assert here.emails() == []
        assert client.post("/users", json={"email": "b@example.com", "verified": True}).status_code == 201
        assert here.emails() == ["b@example.com"]


# Migration to Plugin


def test_migration_before(here: RawDatabase) -> None:
    here.sees("INSERT INTO users (email) VALUES ('a@example.com')")
    spec = SQLSpec()
    config = spec.add_config(here.config_class(pool_config=here.pool_config))

    @asynccontextmanager
    async def lifespan(app: Starlette):
        app.state.sqlspec = spec
        app.state.db_config = config
        yield
        await spec.close_all_pools()

    async def list_users(request) -> JSONResponse:
        async with request.app.state.sqlspec.provide_session(request.app.state.db_config) as session:
            result = await session.execute("SELECT * FROM users")
            return JSONResponse({"users": result.all()})

    app = Starlette(routes=[Route("/users", list_users)], lifespan=lifespan)

    with TestClient(app) as client:
        assert client.get("/users").json() == {"users": [{"id": 1, "email": "a@example.com"}]}


def test_migration_after(here: RawDatabase) -> None:
    here.sees("INSERT INTO users (email) VALUES ('a@example.com')")
    sqlspec = SQLSpec()
    config = here.config_class(
        pool_config=here.pool_config,
        extension_config={"starlette": {"commit_mode": "autocommit"}},
    )
    sqlspec.add_config(config)

    app = Starlette()
    db_ext = SQLSpecPlugin(sqlspec, app)

    @route(app, "/users")
    async def list_users(request):
        db = db_ext.get_session(request)
        result = await db.execute("SELECT * FROM users")
        return JSONResponse({"users": result.all()})

    with TestClient(app) as client:
        assert client.get("/users").json() == {"users": [{"id": 1, "email": "a@example.com"}]}
