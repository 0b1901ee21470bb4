"""Sessions of raw drivers in a Starlette app: keys, what lies under them, several databases, lifespans, own units."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from held import File, calling, get, insert, post, websocket
from raw_databases import DRIVERS, RawDatabase, config_class, raw_database
from servers import ports, started
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from transept import DatabaseUnavailable, ImproperConfigurationError, OutsideScope, Registry, SQLError, UsageError
from transept.adapters.asyncpg import AsyncpgConfig
from transept.config import FastAPIConfig, StarletteConfig
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio

INSERT = "INSERT INTO held VALUES (?)"
Work = Callable[[Request], Any]


@pytest.fixture(params=DRIVERS)
def raw(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database(request.param, request, tmp_path, "held")


@pytest.fixture
def pg(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("asyncpg", request, tmp_path, "held")


@pytest.fixture
def lite(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RawDatabase]:
    yield from raw_database("aiosqlite", request, tmp_path, "held")


def app_of(databases: Any, work: Work, **options: Any) -> tuple[Starlette, Transept]:
    """An app whose endpoint awaits `work(request)`, which returns a response, or what goes into one as JSON."""

    async def endpoint(request: Request) -> Response:
        said = await work(request)
        return said if isinstance(said, Response) else JSONResponse(said, 201)

    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])], **options)
    return app, Transept(databases, app)


def registry_of(*configs: Any) -> Registry:
    registry = Registry()
    for config in configs:
        registry.add_config(config)
    return registry


async def write(request: Request) -> None:
    await request.state.db_session.execute(INSERT, 1)


# Keys


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({}, ("db_session", "db_connection", "db_pool")),
        ({"bind_key": "x"}, ("x_session", "x_connection", "x_pool")),
        ({"session_key": "k"}, ("k", "k_connection", "k_pool")),
        ({"session_key": "k", "bind_key": "x"}, ("k", "k_connection", "k_pool")),
        ({"connection_key": "c"}, ("db_session", "c", "db_pool")),
        ({"bind_key": "x", "pool_key": "p"}, ("x_session", "x_connection", "p")),
        ({"session_key": "s", "connection_key": "c", "pool_key": "p"}, ("s", "c", "p")),
    ],
)
async def test_session_connection_and_pool_lie_on_the_state_by_their_keys(
    raw: RawDatabase, settings: dict[str, str], keys: tuple[str, str, str]
) -> None:
    async def look(request: Request) -> list[bool]:
        session, connection = request.state[keys[0]], request.state[keys[1]]
        await session.execute(INSERT, 1)
        cursor = await connection.execute("SELECT v FROM held")
        assert await cursor.fetchall() == [(1,)]
        pool = getattr(request.app.state, keys[2])
        return [
            session is db.get_session(request),
            connection is db.get_connection(request),
            pool is await provided(config.provide_pool()),
        ]

    config = raw.config(**settings)
    app, db = app_of(config, look)
    response = await post(app)
    assert response.json() == [True, True, True]
    assert raw.held() == [1]
    await config.stop()


async def provided(pool: Any) -> Any:
    return await pool if asyncio.iscoroutine(pool) else pool


def test_a_second_config_without_a_name_is_named_by_its_session_key(pg: RawDatabase) -> None:
    registry = registry_of(pg.config(), pg.config(session_key="analytics"))
    assert list(registry.configs) == ["default", "analytics"]
    assert registry.get_config("analytics").pool_key == "analytics_pool"


def test_a_registry_name_gives_the_keys(pg: RawDatabase) -> None:
    config = Registry().add_config(pg.config(), name="reports")
    assert (config.bind_key, config.session_key, config.connection_key, config.pool_key) == (
        "reports",
        "reports_session",
        "reports_connection",
        "reports_pool",
    )


def test_a_second_config_with_nothing_of_its_own_is_refused(pg: RawDatabase) -> None:
    registry = registry_of(pg.config())
    with pytest.raises(ImproperConfigurationError, match=r"unique name for the `bind_key`.*'default'"):
        registry.add_config(pg.config())


def test_keys_of_one_config_must_differ() -> None:
    with pytest.raises(
        ImproperConfigurationError, match=r"Duplicate state keys found: .*session_key='a'.*pool_key='a'"
    ):
        AsyncpgConfig(session_key="a", pool_key="a")


def test_a_word_that_means_two_databases_is_refused(pg: RawDatabase) -> None:
    registry = registry_of(pg.config(bind_key="a", session_key="b"))
    with pytest.raises(ImproperConfigurationError, match="'b' would mean two databases, 'a' and 'b'"):
        registry.add_config(pg.config(bind_key="b"))


def test_a_key_of_one_kind_that_is_another_databases_key_of_another_kind_is_refused(pg: RawDatabase) -> None:
    registry = registry_of(pg.config(bind_key="a", session_key="shared"))
    with pytest.raises(ImproperConfigurationError, match=r"Duplicate state keys found: .*'shared'"):
        registry.add_config(pg.config(bind_key="b", connection_key="shared"))


# What lies under them


async def test_a_request_that_only_looks_at_session_and_connection_does_not_connect() -> None:
    async def look(request: Request) -> None:
        assert request.state.db_session is request.state.db_session
        assert request.state.db_connection is request.state.db_connection

    app, _ = app_of(AsyncpgConfig(pool_config={"dsn": "postgresql://nobody@127.0.0.1:1/nothing"}), look)
    assert (await get(app)).status_code == 201


async def test_the_connection_commits_what_the_session_did(raw: RawDatabase) -> None:
    async def work(request: Request) -> Response:
        await request.state.db_session.execute(INSERT, 1)
        await request.state.db_connection.commit()
        await request.state.db_session.execute(INSERT, 2)
        return Response(status_code=400)

    app, _ = app_of(raw.config(), work)
    assert (await post(app)).status_code == 400
    assert raw.held() == [1]


async def test_the_connection_rolls_back_what_the_session_did(raw: RawDatabase) -> None:
    async def work(request: Request) -> None:
        await request.state.db_session.execute(INSERT, 1)
        await request.state.db_connection.rollback()
        await request.state.db_connection.execute(INSERT, 2)

    app, _ = app_of(raw.config(), work)
    assert (await post(app)).status_code == 201
    assert raw.held() == [2]


async def test_rows_of_a_cursor_are_tuples(raw: RawDatabase) -> None:
    async def work(request: Request) -> None:
        conn = request.state.db_connection
        async with conn.cursor() as cursor:
            assert cursor.description is None
            await cursor.execute("SELECT 1 AS one, 'a' AS letter")
            assert [column[0] for column in cursor.description] == ["one", "letter"]
            row = await cursor.fetchone()
            assert (type(row), row) == (tuple, (1, "a"))
            assert await cursor.fetchone() is None
        await cursor.executemany(INSERT, [(1,), (2,), (3,)])
        await cursor.execute("SELECT v FROM held ORDER BY v")
        assert [row async for row in cursor] == [(1,), (2,), (3,)]
        cursor = await conn.cursor()
        await cursor.execute("SELECT v FROM held WHERE v > $1 ORDER BY v", [1])
        assert await cursor.fetchmany(1) == [(2,)]
        assert await cursor.fetchall() == [(3,)]
        await cursor.close()

    app, _ = app_of(raw.config(), work)
    assert (await post(app)).status_code == 201
    assert raw.held() == [1, 2, 3]


async def test_the_rest_of_the_drivers_connection_is_passed_through(raw: RawDatabase) -> None:
    async def work(request: Request) -> Any:
        conn = request.state.db_connection
        await conn.execute(INSERT, 1)
        if raw.driver == "asyncpg":
            return await conn.fetchval("SELECT count(*) FROM held")
        if raw.driver == "aiosqlite":
            return (await conn.execute_fetchall("SELECT count(*) FROM held"))[0][0]
        if raw.driver == "psycopg":
            return conn.info.transaction_status.value - 1  # INTRANS is 2
        await conn.query("SELECT count(*) FROM held")
        return (await conn.cursor().execute("SELECT count(*) FROM held")).rowcount

    app, _ = app_of(raw.config(), work)
    assert (await post(app)).json() == 1


async def test_a_name_that_the_drivers_connection_does_not_have_is_named(raw: RawDatabase) -> None:
    async def work(request: Request) -> Any:
        with pytest.raises(AttributeError, match="comit"):
            request.state.db_connection.comit  # noqa: B018

    app, _ = app_of(raw.config(), work)
    assert (await post(app)).status_code == 201


async def test_a_block_of_the_connection_is_a_savepoint_of_the_requests_transaction(raw: RawDatabase) -> None:
    async def work(request: Request) -> None:
        conn, session = request.state.db_connection, request.state.db_session
        await session.execute(INSERT, 1)
        with pytest.raises(KeyError):
            async with conn.transaction():
                await session.execute(INSERT, 2)
                raise KeyError
        async with conn.transaction():
            await conn.execute(INSERT, 3)

    app, _ = app_of(raw.config(), work)
    assert (await post(app)).status_code == 201
    assert raw.held() == [1, 3]


async def test_the_drivers_pool_may_be_used_beside_the_sessions(pg: RawDatabase) -> None:
    async def work(request: Request) -> Any:
        await request.state.db_session.execute(INSERT, 1)
        async with request.app.state.db_pool.acquire() as connection:
            await connection.execute("INSERT INTO held VALUES (2)")
            return await connection.fetchval("SELECT count(*) FROM held")

    app, _ = app_of(pg.config(), work)
    with TestClient(app) as client:
        assert client.post("/").json() == 1
    assert pg.held() == [1, 2]


# Settings


async def test_disable_di_leaves_the_state_alone_and_get_session_works(raw: RawDatabase) -> None:
    async def work(request: Request) -> list[bool]:
        await db.get_session(request).execute(INSERT, 1)
        await db.get_connection(request).execute(INSERT, 2)
        return [hasattr(request.state, key) for key in ("db_session", "db_connection")]

    app, db = app_of(raw.config(extension_config={"starlette": {"disable_di": True}}), work)
    response = await post(app)
    assert (response.status_code, response.json()) == (201, [False, False])
    assert raw.held() == [1, 2]


@pytest.mark.parametrize(
    "extension_config",
    [
        {"starlette": {"commit_mode": "autocommit"}},
        {"starlette": StarletteConfig(commit_mode="autocommit")},
        {"fastapi": FastAPIConfig(commit_mode="autocommit")},
        {"litestar": {"commit_mode": "autocommit"}, "flask": {"commit_mode": "autocommit"}},
        {"starlette": {}, "fastapi": {"commit_mode": "autocommit", "extra_rollback_statuses": {299}}},
    ],
)
async def test_settings_for_a_framework_are_the_databases(pg: RawDatabase, extension_config: Any) -> None:
    app, _ = app_of(AsyncpgConfig(pool_config=pg.pool_config, extension_config=extension_config), write)
    assert (await post(app)).status_code == 201
    assert pg.held() == [1]


@pytest.mark.parametrize("extension_config", [None, {}, {"starlette": {}}])
def test_without_settings_for_a_framework_the_defaults_hold(extension_config: Any) -> None:
    config = AsyncpgConfig(extension_config=extension_config)
    assert (config.commit_mode, config.session_key, config.disable_di) == ("manual", "db_session", False)


def test_settings_of_the_config_and_for_a_framework_are_joined() -> None:
    config = AsyncpgConfig(commit_mode="autocommit", extension_config={"starlette": {"session_key": "db"}})
    assert (config.commit_mode, config.session_key, config.pool_key) == ("autocommit", "db", "db_pool")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"extension_config": {"starlette": {"comit_mode": "manual"}}}, ["starlette", "comit_mode", "commit_mode"]),
        ({"extension_config": {"starlete": {}}}, ["extension_config", "'starlete'", "'starlette'"]),
        (
            {"extension_config": {"starlette": {"commit_mode": "autocomit"}}},
            ["commit_mode", "'autocomit'", "autocommit"],
        ),
        ({"commit_mode": "autocomit"}, ["commit_mode", "'autocomit'", "autocommit"]),
        ({"extension_config": {"starlette": {"extra_commit_statuses": 201}}}, ["extra_commit_statuses", "201"]),
        ({"extra_commit_statuses": {201}, "extra_rollback_statuses": {201}}, ["201", "extra_commit_statuses"]),
        (
            {"extension_config": {"starlette": {"session_key": ""}, "fastapi": {"session_key": " "}}},
            ["session_key", "' '"],
        ),
        ({"extension_config": {"starlette": None}}, ["extension_config['starlette']", "None"]),
        ({"extension_config": "starlette"}, ["extension_config", "'starlette'"]),
        ({"extension_config": {"starlette": {"disable_di": "no"}}}, ["disable_di", "'no'", "bool"]),
        ({"pool_config": {"dns": "postgresql://"}}, ["pool_config", "'dns'", "'dsn'"]),
        ({"connection_config": {"max_sise": 1}}, ["'max_sise'", "'max_size'"]),
        ({"pool_config": "postgresql://localhost"}, ["pool_config", "'postgresql://localhost'"]),
        ({"pool_config": {"dsn": ""}, "connection_config": {"dsn": ""}}, ["pool_config", "connection_config"]),
        ({"pool_timeout": "10"}, ["pool_timeout", "'10'"]),
        ({"pool_timeout": -1}, ["pool_timeout", "-1", "0 or more"]),
        ({"pool_timeout": float("nan")}, ["pool_timeout", "nan", "0 or more"]),
        ({"pool_config": None}, ["pool_config", "None"]),
        ({"connection_key": 5}, ["connection_key", "5"]),
        ({"extra_commit_statuses": {404}}, ["extra_commit_statuses", "commit_mode='manual'"]),
        ({"eager": 1}, ["eager", "1", "bool"]),
        (
            {"extension_config": {"starlette": {"commit_mode": "autocommit"}, "fastapi": {"commit_mode": "manual"}}},
            ["starlette", "fastapi", "commit_mode", "'autocommit'", "'manual'"],
        ),
        (
            {"commit_mode": "autocommit", "extension_config": {"starlette": {"commit_mode": "manual"}}},
            ["starlette", "config itself", "'autocommit'", "'manual'"],
        ),
        (
            {"session_key": "a", "extension_config": {"starlette": {"session_key": "b"}}},
            ["session_key", "'a'", "'b'"],
        ),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_its_value_and_what_is_allowed(
    settings: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ImproperConfigurationError) as refused:
        AsyncpgConfig(**settings)
    assert [word for word in words if word not in str(refused.value)] == []


def test_an_unknown_setting_of_the_config_is_refused_with_the_nearest() -> None:
    settings: dict[str, Any] = {"comit_mode": "autocommit"}
    with pytest.raises(ImproperConfigurationError, match=r"comit_mode.*commit_mode"):
        AsyncpgConfig(**settings)


async def test_connection_config_is_another_name_of_pool_config(raw: RawDatabase) -> None:
    app, _ = app_of(raw.config_class(connection_config=raw.pool_config, commit_mode="autocommit"), write)
    assert (await post(app)).status_code == 201
    assert raw.held() == [1]


def test_a_mapping_of_settings_is_not_changed(pg: RawDatabase) -> None:
    pool_config = {**pg.pool_config, "min_size": 1}
    extension_config = {"starlette": {"session_key": "db"}}
    app, _ = app_of(AsyncpgConfig(pool_config=pool_config, extension_config=extension_config), write)
    with TestClient(app):
        assert (pool_config, extension_config) == (
            {**pg.pool_config, "min_size": 1},
            {"starlette": {"session_key": "db"}},
        )


# Several databases


async def test_sqlalchemy_and_a_raw_database_in_one_request_are_settled_together(pg: RawDatabase, file: File) -> None:
    async def work(request: Request) -> Response:
        await request.state.orm_session.execute(insert(1))
        await request.state.raw_session.execute(INSERT, 1)
        return Response(status_code=int(request.query_params["status"]))

    app, _ = app_of(registry_of(file.config(bind_key="orm"), pg.config(bind_key="raw")), work)
    async with calling(app) as client:
        for status in (400, 201):
            assert (await client.post(f"/?status={status}")).status_code == status
            assert file.held() == pg.held() == ([1] if status == 201 else [])


async def test_each_database_decides_by_its_own_mode(raw: RawDatabase, file: File) -> None:
    async def work(request: Request) -> Response:
        await request.state.orm_session.execute(insert(1))
        await request.state.raw_session.execute(INSERT, 1)
        return Response(status_code=303)

    configs = file.config(bind_key="orm"), raw.config(bind_key="raw", commit_mode="autocommit_include_redirect")
    app, _ = app_of(registry_of(*configs), work)
    assert (await post(app)).status_code == 303
    assert (file.held(), raw.held()) == ([], [1])


async def test_a_failed_commit_of_the_raw_database_keeps_nothing_of_the_other(pg: RawDatabase, file: File) -> None:
    async def work(request: Request) -> None:
        await request.state.orm_session.execute(insert(1))
        await request.state.raw_session.execute(INSERT, 1)
        with pytest.raises(SQLError):
            await request.state.raw_session.execute("SELECT * FROM nowhere")

    app, _ = app_of(registry_of(file.config(bind_key="orm"), pg.config(bind_key="raw")), work)
    assert (await post(app)).status_code == 500
    assert (file.held(), pg.held()) == ([], [])


async def test_asking_a_sqlalchemy_database_for_a_raw_connection_is_refused(pg: RawDatabase, file: File) -> None:
    async def work(request: Request) -> None:
        assert not hasattr(request.state, "orm_connection")
        with pytest.raises(Exception, match="'orm'"):
            db.get_connection(request, "orm")
        with pytest.raises(ImproperConfigurationError, match=r"async config, but got AsyncpgConfig"):
            db.get_async_session(request, "raw")

    app, db = app_of(registry_of(file.config(bind_key="orm"), pg.config(bind_key="raw")), work)
    assert (await post(app)).status_code == 201


async def test_a_raw_database_is_found_by_session_key_by_bind_key_by_name_and_by_itself(
    pg: RawDatabase, lite: RawDatabase
) -> None:
    async def work(request: Request) -> list[bool]:
        one, two = request.state.first, request.state.second_session
        assert one is not two
        return [
            one is db.get_session(request),
            *[one is db.get_session(request, key) for key in ("one", "first", first)],
            *[two is db.get_session(request, key) for key in ("second", "second_session", second)],
            *[request.state.second_connection is db.get_connection(request, key) for key in ("second", second)],
        ]

    first, second = pg.config(session_key="first"), lite.config(bind_key="second")
    registry = Registry()
    registry.add_config(first, name="one")
    registry.add_config(second)
    app, db = app_of(registry, work)
    assert (await get(app)).json() == [True] * 9


async def test_a_list_of_raw_configs_needs_a_default_where_a_registry_takes_the_first(
    pg: RawDatabase, lite: RawDatabase
) -> None:
    async def work(request: Request) -> None:
        with pytest.raises(ImproperConfigurationError, match=r"a key is needed: 'one', 'two'"):
            db.get_session(request)

    app, db = app_of([pg.config(bind_key="one"), lite.config(bind_key="two")], work)
    assert (await get(app)).status_code == 201


# Lifespans


def pools_of(config: Any) -> list[Any]:
    made: list[Any] = []
    config.when_pooled(made.append)
    return made


def test_a_lifespan_by_hand_and_init_app_start_and_stop_once(raw: RawDatabase) -> None:
    config = raw.config()
    pools, seen = pools_of(config), []
    db = Transept(registry_of(config))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        async with db.lifespan(app):
            seen.append(app.state.db_pool)
            yield
        await write_alone(config)  # the app's own lifespan is inside of that of the databases

    app = Starlette(routes=[Route("/", endpoint_of(write), methods=["POST"])], lifespan=lifespan)
    db.init_app(app)
    with TestClient(app) as client:
        assert client.post("/").status_code == 201
    assert len(pools) == 1
    assert seen == pools
    assert raw.held() == [1, 7]


def endpoint_of(work: Work) -> Any:
    async def endpoint(request: Request) -> Response:
        await work(request)
        return Response(status_code=201)

    return endpoint


async def write_alone(config: Any) -> None:
    async with Registry().provide_session(config) as session:
        await session.execute(INSERT, 7)


async def test_without_a_lifespan_pools_start_at_first_use(raw: RawDatabase) -> None:
    config = raw.config()
    pools = pools_of(config)
    app, _ = app_of(config, write)
    assert (pools, hasattr(app.state, "db_pool")) == ([], False)
    async with calling(app) as client:
        for _ in range(2):
            assert (await client.post("/")).status_code == 201
    assert pools == [app.state.db_pool]
    assert raw.held() == [1, 1]
    await config.stop()


def test_an_app_starts_again_with_a_new_pool(raw: RawDatabase) -> None:
    config = raw.config()
    pools = pools_of(config)
    app, _ = app_of(config, write)
    for round_ in (1, 2):
        with TestClient(app) as client:
            assert client.post("/").status_code == 201
            assert app.state.db_pool is pools[-1]
        assert len(pools) == round_
    assert raw.held() == [1, 1]


async def test_a_registry_serves_two_apps_and_is_stopped_with_the_last(raw: RawDatabase) -> None:
    config = raw.config()
    pools = pools_of(config)
    registry = registry_of(config)
    (one, _), (two, _) = app_of(registry, write), app_of(registry, write)
    async with two.router.lifespan_context(two):
        async with one.router.lifespan_context(one):
            assert (await post(one)).status_code == 201
        assert (await post(two)).status_code == 201
        assert one.state.db_pool is two.state.db_pool
    assert len(pools) == 1
    assert raw.held() == [1, 1]


async def test_an_app_that_joins_a_running_database_has_its_pool_on_the_state(raw: RawDatabase) -> None:
    config = raw.config()
    registry = registry_of(config)
    async with registry.provide_session() as session:
        await session.execute(INSERT, 1)
    app, _ = app_of(registry, write)
    async with app.router.lifespan_context(app):
        assert app.state.db_pool is await provided(config.provide_pool())


def test_a_second_transept_joins_the_gate_and_an_equal_name_is_refused(pg: RawDatabase, lite: RawDatabase) -> None:
    async def work(request: Request) -> None:
        await request.state.db_session.execute(INSERT, 1)
        await request.state.lite_session.execute(INSERT, 2)

    app, _ = app_of(pg.config(), work)
    Transept(lite.config(bind_key="lite"), app)
    with pytest.raises(ImproperConfigurationError, match="'lite'"):
        Transept(lite.config(bind_key="lite"), app)
    with TestClient(app) as client:
        assert client.post("/").status_code == 201
        assert app.state.lite_pool is not None
    assert (pg.held(), lite.held()) == ([1], [2])


# Sessions of one's own


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("by", ["default", "name", "session key", "config", "a config never added"])
async def test_provide_session_is_a_unit_of_its_own_that_commits_at_a_clean_end(
    raw: RawDatabase, inside: bool, by: str
) -> None:
    async def own(request: Request | None = None) -> Response:
        for fails in (False, True):
            try:
                async with registry.provide_session(keys[by]) as session:
                    await session.execute(INSERT, 2 + fails)
                    if fails:
                        raise KeyError
            except KeyError:
                pass
        if request is not None:
            mine = request.state.db_session
            await mine.execute(INSERT, 1)
        return Response(status_code=400)

    config = raw.config(commit_mode="manual")
    registry = registry_of(config)
    another = raw.config(commit_mode="manual", bind_key="another")
    keys: dict[str, Any] = {
        "default": None, "name": "default", "session key": "db_session", "config": config,
        "a config never added": another,
    }  # fmt: skip
    app, _ = app_of(registry, own)
    if inside:
        assert (await post(app)).status_code == 400
    else:
        await own()
    assert raw.held() == [2]
    await registry.close_all_pools()
    await another.stop()


async def test_a_session_of_its_own_is_not_the_requests(raw: RawDatabase) -> None:
    async def work(request: Request) -> None:
        async with registry.provide_session() as session, registry.provide_session() as other:
            assert len({id(one) for one in (request.state.db_session, session, other)}) == 3
        with pytest.raises(OutsideScope):
            await session.execute(INSERT, 1)

    registry = registry_of(raw.config())
    app, _ = app_of(registry, work)
    assert (await post(app)).status_code == 201


async def test_provide_connection_is_a_unit_of_its_own(raw: RawDatabase) -> None:
    registry = registry_of(raw.config(commit_mode="manual"))
    async with registry.provide_connection() as connection:
        await connection.execute(INSERT, 1)
    with pytest.raises(KeyError):
        async with registry.provide_connection("default") as connection:
            await connection.execute(INSERT, 2)
            raise KeyError
    assert raw.held() == [1]
    await registry.close_all_pools()


async def test_a_name_that_nobody_has_is_refused_before_the_block(pg: RawDatabase) -> None:
    registry = registry_of(pg.config())
    with pytest.raises(ImproperConfigurationError, match=r"No configuration found for key 'defualt'.*'default'"):
        registry.provide_session("defualt")


async def test_a_plain_with_around_a_database_that_is_awaited_is_refused(lite: RawDatabase) -> None:
    registry = registry_of(lite.config())
    for block in (registry.provide_session(), registry.provide_connection("default")):
        with pytest.raises(UsageError, match=r"database 'default', .*`async with`"), block:
            pass


def test_an_app_of_another_kind_is_refused(lite: RawDatabase) -> None:
    with pytest.raises(ImproperConfigurationError, match="app='app': a Starlette app is needed"):
        Transept(lite.config(), "app")  # type: ignore[arg-type] # what is tested


async def test_close_all_pools_closes_and_the_next_use_opens_again(raw: RawDatabase) -> None:
    config = raw.config()
    pools, registry = pools_of(config), registry_of(config)
    for _ in range(2):
        async with registry.provide_session() as session:
            await session.execute(INSERT, 1)
        await registry.close_all_pools()
    await registry.close_all_pools()
    assert len(pools) == 2
    assert raw.held() == [1, 1]


# WebSockets


async def test_a_websocket_has_a_unit_for_each_message(raw: RawDatabase) -> None:
    async def serve(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            v = await socket.receive_json()
            session = db.get_session(socket)
            await session.execute(INSERT, v)
            if v < 0:
                raise ValueError(v)
            await socket.send_json(await session.select_value("SELECT count(*) FROM held"))

    app = Starlette(routes=[WebSocketRoute("/", serve)])
    db = Transept(raw.config(), app)
    with pytest.raises(ValueError, match="-1"):
        await websocket(app, 1, 2, -1)
    assert raw.held() == [1, 2]


async def test_a_websocket_message_is_committed_before_its_answer_is_sent(raw: RawDatabase) -> None:
    async def serve(socket: WebSocket) -> None:
        await socket.accept()
        v = await socket.receive_json()
        await db.get_connection(socket).execute(INSERT, v)
        await socket.send_json("kept")
        assert raw.held() == [v]

    app = Starlette(routes=[WebSocketRoute("/", serve)])
    db = Transept(raw.config(), app)
    assert len(await websocket(app, 5)) >= 2
    assert raw.held() == [5]


async def test_provide_session_around_a_websocket_is_kept_at_its_clean_end(raw: RawDatabase) -> None:
    async def serve(socket: WebSocket) -> None:
        await socket.accept()
        async with registry.provide_session() as session:
            try:
                while True:
                    await session.execute(INSERT, await socket.receive_json())
                    await socket.send_json(None)
                    assert raw.held() == []
            except WebSocketDisconnect:
                pass

    registry = registry_of(raw.config())
    app = Starlette(routes=[WebSocketRoute("/", serve)])
    Transept(registry, app)
    await websocket(app, 1, 2)
    assert raw.held() == [1, 2]


# Background tasks


@pytest.mark.parametrize("fails", [False, True])
async def test_a_background_task_has_a_fresh_unit_by_get_session(raw: RawDatabase, fails: bool) -> None:
    async def work(request: Request) -> Response:
        session = db.get_session(request)
        await session.execute(INSERT, 1)

        async def later() -> None:
            assert raw.held() == [1]
            with pytest.raises(OutsideScope):
                await session.execute(INSERT, 9)
            fresh = db.get_session(request)
            assert fresh is not session
            await fresh.execute(INSERT, 2)
            if fails:
                raise KeyError

        return Response(status_code=201, background=BackgroundTask(later))

    app, db = app_of(raw.config(), work)
    assert (await post(app)).status_code == 201
    assert raw.held() == ([1] if fails else [1, 2])


@pytest.mark.parametrize("fails", [False, True])
async def test_a_background_task_has_a_unit_of_its_own_by_provide_session(raw: RawDatabase, fails: bool) -> None:
    async def work(request: Request) -> Response:
        async def later() -> None:
            async with registry.provide_session() as session:
                await session.execute(INSERT, 2)
                if fails:
                    raise KeyError

        await request.state.db_session.execute(INSERT, 1)
        return Response(status_code=201, background=BackgroundTask(later))

    registry = registry_of(raw.config())
    app, _ = app_of(registry, work)
    assert (await post(app)).status_code == 201
    assert raw.held() == ([1] if fails else [1, 2])


# A server that is down

Make = Callable[..., Any]


@pytest.fixture(params=["asyncpg", "psycopg", "asyncmy"])
def down(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Make, Callable[[], Any]]]:
    """What makes a config of a server that is not there, and what starts that server."""
    port = ports.free()
    monkeypatch.setattr(ports, "free", lambda: port)
    dsn, server = f"postgresql://postgres@127.0.0.1:{port}/postgres", started.postgres()
    if request.param == "asyncmy":
        dsn, server = f"mysql://root@127.0.0.1:{port}/mysql", started.mariadb()

    def make(**settings: Any) -> Any:
        pool_config = {"dsn": dsn, "min_size": 1}
        return config_class(request.param)(pool_config=pool_config, pool_timeout=5, **settings)

    with ExitStack() as running:
        yield make, lambda: running.enter_context(server)


async def select(request: Request) -> Any:
    return await request.state.db_session.select_value("SELECT 1") if request.method == "POST" else "no database"


def test_an_app_starts_without_its_server_and_heals_when_it_comes(
    down: tuple[Make, Callable[[], Any]], caplog: pytest.LogCaptureFixture
) -> None:
    async def work(request: Request) -> Any:
        try:
            return await select(request)
        except DatabaseUnavailable as error:
            unavailable.append(error.database)
            raise

    make, start = down
    unavailable: list[str] = []
    app, _ = app_of(make(), work)
    with TestClient(app) as client:
        assert client.get("/").json() == "no database"
        assert client.post("/").status_code == 503
        assert unavailable == ["default"]
        assert client.get("/").json() == "no database"
        start()
        assert client.post("/").json() == 1
    assert any("'default' cannot be reached yet" in message for message in caplog.messages) or "psycopg" in caplog.text


def test_eager_makes_start_up_fail_where_the_server_is_down(down: tuple[Make, Callable[[], Any]]) -> None:
    make, _ = down
    app, _ = app_of(make(eager=True), write)
    with pytest.raises(Exception, match=r"(?i)connect|within 5"), TestClient(app):
        pass


@pytest.mark.parametrize("driver", ["aiosqlite", "sqlite"])
def test_an_app_starts_without_its_folder_and_heals_when_there_is_one(driver: str, tmp_path: Path) -> None:
    async def work(request: Request) -> Any:
        select_value = request.state.db_session.select_value
        return await (run_in_threadpool(select_value, "SELECT 1") if driver == "sqlite" else select_value("SELECT 1"))

    folder = tmp_path / "later"
    make = partial(config_class(driver), pool_config={"database": str(folder / "app.db"), "min_size": 1})
    eager, _ = app_of(make(eager=True), work)
    with pytest.raises(DatabaseUnavailable, match="unable to open"), TestClient(eager):
        pass
    app, _ = app_of(make(), work)
    with TestClient(app) as client:
        assert client.post("/").status_code == 503
        folder.mkdir()
        assert client.post("/").json() == 1
