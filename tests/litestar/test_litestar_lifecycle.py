"""How `Transept` joins a Litestar app: start-up and shutdown, test clients, several plugins, apps within apps."""

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, insert, out_of_pool
from litestar import Litestar, Request, Response, Router, asgi, get, post
from litestar.config.app import AppConfig
from litestar.datastructures import State
from litestar.plugins import InitPlugin
from litestar.testing import AsyncTestClient, TestClient, create_async_test_client, create_test_client
from litestar_app import config_of, sync_config_of
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from transept import ImproperConfigurationError, OutsideScope, current_unit
from transept.alchemy import SQLAlchemyAsyncConfig as CoreConfig
from transept.extensions.litestar import SQLAlchemyAsyncConfig, SQLAlchemyPlugin, SQLAlchemySyncConfig, Transept
from transept.extensions.starlette import Transept as StarletteTransept

pytestmark = pytest.mark.anyio


def counting(config: Any) -> list[str]:
    """Note each start and stop of this database."""
    seen: list[str] = []
    start, stop = config.start, config.stop

    async def started() -> None:
        seen.append("start")
        await start()

    async def stopped() -> None:
        seen.append("stop")
        await stop()

    config.start, config.stop = started, stopped
    return seen


def noting(config: Any, name: str, seen: list[str]) -> Any:
    """Note each start and stop of several databases in one list."""
    start, stop = config.start, config.stop

    async def started() -> None:
        seen.append(f"{name} up")
        await start()

    async def stopped() -> None:
        await stop()
        seen.append(f"{name} down")

    config.start, config.stop = started, stopped
    return config


@post("/")
async def write(db_session: AsyncSession) -> int:
    await db_session.execute(insert(1))
    return await db_session.scalar(COUNT) or 0


def app_of(*plugins: Any, handlers: Any = (write,), **settings: Any) -> Litestar:
    settings = {"openapi_config": None, "logging_config": None, **settings}
    return Litestar(handlers, plugins=plugins, **settings)


def gone(pg: Postgres, seconds: float = 5) -> bool:
    """Whether the server has no connection of the app any more, which it sees a moment after the app has closed it."""
    end = time.monotonic() + seconds
    while pg.backends():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as look:
        return [name for (name,) in look.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


# Test clients


@pytest.mark.parametrize("lifespan", [True, False])
def test_a_test_client_works_with_a_lifespan_and_without(file: File, lifespan: bool) -> None:
    config = config_of(file)
    seen = counting(config)
    app = app_of(Transept(config))
    if lifespan:
        with TestClient(app) as client:
            assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    else:
        client = TestClient(app)
        assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    assert seen == (["start", "stop"] if lifespan else [])
    assert file.held() == [1, 1, 1]


@pytest.mark.parametrize("lifespan", [True, False])
async def test_an_async_test_client_works_with_a_lifespan_and_without(pg: Postgres, lifespan: bool) -> None:
    config = config_of(pg)
    seen = counting(config)
    client = AsyncTestClient(app_of(Transept(config)))
    if lifespan:
        async with client:
            assert [(await client.post("/")).json() for _ in range(3)] == [1, 2, 3]
        assert gone(pg)
    else:
        assert [(await client.post("/")).json() for _ in range(3)] == [1, 2, 3]
        await config.stop()
    assert seen == (["start", "stop"] if lifespan else ["stop"])
    assert pg.held() == [1, 1, 1]


def test_a_test_client_works_on_postgresql_without_a_lifespan(pg: Postgres) -> None:
    client = TestClient(app_of(Transept(config_of(pg))))
    assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    assert pg.held() == [1, 1, 1]


def test_create_test_client_takes_the_plugin(file: File) -> None:
    with create_test_client(write, plugins=[SQLAlchemyPlugin(config_of(file))], logging_config=None) as client:
        assert [client.post("/").json() for _ in range(2)] == [1, 2]
    assert file.held() == [1, 1]


async def test_create_async_test_client_takes_the_plugin(file: File) -> None:
    client = create_async_test_client(write, plugins=[SQLAlchemyPlugin(config_of(file))], logging_config=None)
    async with client:
        assert (await client.post("/")).json() == 1
    assert file.held() == [1]


def test_an_app_starts_and_stops_again(pg: Postgres) -> None:
    config = config_of(pg)
    seen = counting(config)
    app = app_of(Transept(config))
    for count in (1, 2, 3):
        with TestClient(app) as client:
            assert client.post("/").json() == count
        assert gone(pg)
    assert seen == ["start", "stop"] * 3


# Tables


@pytest.mark.parametrize("lifespan", [True, False])
@pytest.mark.parametrize("blocking", [True, False])
def test_create_all_makes_tables_at_start_up_or_at_first_use(tmp_path: Path, blocking: bool, lifespan: bool) -> None:
    metadata = MetaData()
    Table("held", metadata, Column("v", Integer, primary_key=True))
    path = tmp_path / "made.db"
    kind: Any = SQLAlchemySyncConfig if blocking else SQLAlchemyAsyncConfig
    url = f"sqlite:///{path}" if blocking else f"sqlite+aiosqlite:///{path}"
    config = kind(connection_string=url, metadata=metadata, create_all=True, before_send_handler="autocommit")

    @post("/", sync_to_thread=True)
    def write_in_thread(db_session: Any) -> int:
        db_session.execute(insert(1))
        return db_session.scalar(COUNT) or 0

    app = app_of(Transept(config), handlers=[write_in_thread if blocking else write])
    assert not path.exists()
    client = TestClient(app)
    if lifespan:
        with client:
            assert tables(path) == ["held"]
            assert client.post("/").json() == 1
    else:
        assert client.post("/").json() == 1
        assert tables(path) == ["held"]
    if blocking:
        config.get_engine().dispose()


# The app's state


def test_engines_and_makers_lie_on_the_apps_state_while_it_runs(file: File, other_file: File) -> None:
    first = config_of(file)
    second = config_of(other_file, bind_key="other", session_maker_app_state_key="makes")

    @get("/")
    async def look(state: State) -> list[bool]:
        return [
            state.db_engine is first.get_engine(),
            state.session_maker_class is first.create_session_maker(),
            state["other_engine"] is second.get_engine(),
            state["makes"] is second.create_session_maker(),
        ]

    app = app_of(Transept([first, second]), handlers=[look])
    assert "db_engine" not in app.state
    with TestClient(app) as client:
        assert client.get("/").json() == [True] * 4
        assert {"db_engine", "session_maker_class", "other_engine", "makes"} <= set(app.state)


async def test_a_session_of_the_maker_on_the_state_is_the_apps_own(file: File) -> None:
    @post("/")
    async def write_by_hand(state: State) -> bool:
        async with state.session_maker_class() as session, session.begin():
            await session.execute(insert(1))
        return True

    async with AsyncTestClient(app_of(Transept(config_of(file)), handlers=[write_by_hand])) as client:
        assert (await client.post("/")).json() is True
    assert file.held() == [1]


# Shutdown


KEYS = {
    "default": {},
    "named": {"bind_key": "reports"},
    "chosen": {
        "session_dependency_key": "a",
        "engine_dependency_key": "b",
        "engine_app_state_key": "c",
        "session_maker_app_state_key": "d",
        "session_scope_key": "e",
    },
}


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("blocking", [True, False])
def test_engines_are_disposed_at_shutdown_whatever_their_keys_are(pg: Postgres, keys: str, blocking: bool) -> None:
    config = (sync_config_of if blocking else config_of)(pg, **KEYS[keys])
    db = Transept(config)

    @get("/", sync_to_thread=blocking, dependencies={"session": db.provide_session()})
    def in_a_thread(session: Any) -> int:
        return session.scalar(COUNT) or 0

    @get("/", dependencies={"session": db.provide_session()})
    async def on_the_loop(session: Any) -> int:
        return await session.scalar(COUNT) or 0

    with TestClient(app_of(db, handlers=[in_a_thread if blocking else on_the_loop])) as client:
        assert client.get("/").json() == 0
        assert pg.backends() == 1
    assert gone(pg)


def test_all_of_several_databases_are_disposed_at_shutdown(pg: Postgres) -> None:
    names = [f"session_{n}" for n in range(4)]
    configs = [config_of(pg, session_dependency_key=name) for name in names]
    db = SQLAlchemyPlugin(configs)

    @get("/")
    async def look(session_0: AsyncSession, session_1: AsyncSession, session_2: AsyncSession, session_3: Any) -> None:
        for session in (session_0, session_1, session_2, session_3):
            await session.scalar(COUNT)

    with TestClient(app_of(db, handlers=[look])) as client:
        assert client.get("/").status_code == 200
        assert pg.backends() == 4
    assert gone(pg)


def test_databases_start_in_order_before_all_else_and_stop_in_reverse_after_all_else(
    file: File, other_file: File
) -> None:
    seen: list[str] = []
    first, second = noting(config_of(file), "a", seen), noting(config_of(other_file, bind_key="b"), "b", seen)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        seen.append("lifespan")
        yield
        seen.append("end of lifespan")

    app = app_of(
        Transept([first, second]),
        lifespan=[lifespan],
        on_startup=[lambda: seen.append("on_startup")],
        on_shutdown=[lambda: seen.append("on_shutdown")],
    )
    with TestClient(app):
        seen.append("running")
    assert seen == [
        "a up", "b up", "lifespan", "on_startup", "running", "end of lifespan", "on_shutdown", "b down", "a down",
    ]  # fmt: skip


def test_hooks_and_lifespans_may_use_the_databases(pg: Postgres) -> None:
    config = config_of(pg)
    db = Transept(config)
    seen: list[Any] = []

    async def keep(v: int) -> None:
        async with db.with_async_session() as session:
            await session.execute(insert(v))

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        await keep(1)
        seen.append(app.state.db_engine is config.get_engine())
        yield
        await keep(3)
        seen.append(app.state.db_engine is config.get_engine())

    async def on_startup(app: Litestar) -> None:
        await keep(2)
        seen.append(app.state.db_engine is config.get_engine())

    async def on_shutdown(app: Litestar) -> None:
        await keep(4)
        seen.append(app.state.db_engine is config.get_engine())

    app = app_of(db, lifespan=[lifespan], on_startup=[on_startup], on_shutdown=[on_shutdown])
    with TestClient(app):
        assert pg.held() == [1, 2]
    assert (pg.held(), seen, gone(pg)) == ([1, 2, 3, 4], [True] * 4, True)


@pytest.mark.parametrize("order", [1, -1])
def test_hooks_of_other_plugins_may_use_the_databases(pg: Postgres, order: int) -> None:
    db = Transept(config_of(pg))

    async def keep(v: int) -> None:
        async with db.with_async_session() as session:
            await session.execute(insert(v))

    class Other(InitPlugin):
        def on_app_init(self, app_config: Any) -> Any:
            @asynccontextmanager
            async def lifespan(app: Litestar) -> AsyncIterator[None]:
                assert app.state.db_engine
                await keep(1)
                yield
                await keep(2)

            app_config.lifespan.append(lifespan)
            app_config.on_shutdown.append(partial(keep, 3))
            return app_config

    with TestClient(app_of(*[Other(), db][::order])):
        assert pg.held() == [1]
    assert (pg.held(), gone(pg)) == ([1, 2, 3], True)


@pytest.mark.parametrize("where", ["lifespan", "end of lifespan", "on_startup", "on_shutdown"])
def test_an_error_of_the_apps_own_stops_the_databases(pg: Postgres, where: str) -> None:
    config = config_of(pg)
    seen = counting(config)
    db = Transept(config)

    async def fail_at(place: str) -> None:
        async with db.with_async_session() as session:
            await session.execute(insert(1))
        if place == where:
            raise LookupError(where)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        await fail_at("lifespan")
        yield
        await fail_at("end of lifespan")

    app = app_of(
        db,
        lifespan=[lifespan],
        on_startup=[partial(fail_at, "on_startup")],
        on_shutdown=[partial(fail_at, "on_shutdown")],
    )
    with pytest.raises(BaseException) as caught, TestClient(app):  # noqa: PT011 - in a group, of the client's
        pass
    assert where in str(flat(caught.value))
    assert (seen, gone(pg)) == (["start", "stop"], True)


def flat(error: BaseException) -> list[BaseException]:
    """The errors in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [one for inner in error.exceptions for one in flat(inner)]
    return [error]


def test_a_database_that_does_not_start_stops_those_that_have(pg: Postgres, file: File) -> None:
    first = config_of(pg)
    seen = counting(first)
    metadata = MetaData()
    Table("made", metadata, Column("id", Integer, primary_key=True))
    missing = f"sqlite+aiosqlite:///{file.path.parent / 'missing' / 'app.db'}"
    second = SQLAlchemyAsyncConfig(connection_string=missing, bind_key="b", create_all=True, metadata=metadata)
    app = app_of(Transept([first, second]))
    for _ in range(2):
        with pytest.raises(BaseException), TestClient(app):  # noqa: B017, PT011
            raise AssertionError("it has started")
    assert (seen, gone(pg)) == (["start", "stop"] * 2, True)
    (file.path.parent / "missing").mkdir()
    with TestClient(app) as client:
        assert client.post("/").json() == 1
    assert pg.held() == [1]


def test_an_error_while_stopping_one_database_stops_the_others_and_surfaces(pg: Postgres, file: File) -> None:
    first, second = config_of(pg), config_of(file, bind_key="b")
    stop = second.stop

    async def fail() -> None:
        await stop()
        raise LookupError("no end")

    second.stop = fail
    app = app_of(Transept([first, second]))
    with pytest.raises(BaseException) as caught, TestClient(app) as client:  # noqa: PT011
        assert client.post("/").json() == 1
    assert "no end" in str(flat(caught.value))
    assert gone(pg)


def test_an_engine_of_the_apps_own_is_not_disposed(file: File) -> None:
    made = create_engine(file.url("pysqlite"))
    disposed: list[int] = []
    event.listen(made, "engine_disposed", lambda _: disposed.append(1))

    @get("/", sync_to_thread=True)
    def look(db_session: Any, db_engine: Any) -> bool:
        return db_session.scalar(COUNT) == 0 and db_engine is made

    with TestClient(app_of(Transept(SQLAlchemySyncConfig(engine_instance=made)), handlers=[look])) as client:
        assert client.get("/").json() is True
    assert disposed == []
    made.dispose()


def test_our_lifespan_may_be_one_of_the_apps_with_the_plugin_or_without(file: File) -> None:
    for with_plugin in (True, False):
        config = config_of(file)
        seen = counting(config)
        db = Transept(config)
        app = app_of(*([db] if with_plugin else []), handlers=[], lifespan=[db.lifespan])
        with TestClient(app):
            assert seen == ["start"]
        assert seen == ["start", "stop"]


def test_an_app_may_be_made_from_an_app_config(file: File) -> None:
    settings = AppConfig(route_handlers=[write], plugins=[Transept(config_of(file))], logging_config=None)
    with TestClient(Litestar.from_config(settings)) as client:
        assert client.post("/").json() == 1
    assert file.held() == [1]


# Several plugins, several apps


def test_a_second_plugin_joins_the_gate(file: File, other_file: File) -> None:
    @post("/")
    async def write_both(db_session: AsyncSession, b_session: AsyncSession) -> bool:
        await db_session.execute(insert(1))
        await b_session.execute(insert(2))
        return current_unit().session("b") is b_session

    first, second = config_of(file), config_of(other_file, bind_key="b")
    seen = counting(first), counting(second)
    with TestClient(app_of(Transept(first), Transept(second), handlers=[write_both])) as client:
        assert client.post("/").json() is True
    assert seen == (["start", "stop"], ["start", "stop"])
    assert (file.held(), other_file.held()) == ([1], [2])


def test_a_second_plugin_with_an_equal_bind_key_is_refused(file: File, other_file: File) -> None:
    for second in (config_of(other_file), config_of(other_file, session_dependency_key="b", engine_dependency_key="c")):
        with pytest.raises(ImproperConfigurationError, match=r"Duplicate keys found|unique name for the `bind_key`"):
            app_of(Transept(config_of(file)), Transept(second))


def test_the_same_plugin_or_the_same_database_twice_is_nothing_new(file: File) -> None:
    config = config_of(file)
    seen = counting(config)
    plugin = Transept(config)
    with TestClient(app_of(plugin, plugin, SQLAlchemyPlugin(config))) as client:
        assert [client.post("/").json() for _ in range(2)] == [1, 2]
    assert seen == ["start", "stop"]


def test_two_apps_share_a_configuration_which_stops_with_the_last(pg: Postgres) -> None:
    config = sync_config_of(pg)
    seen = counting(config)

    @post("/", sync_to_thread=True)
    def write_in_thread(db_session: Any) -> int:
        db_session.execute(insert(1))
        return db_session.scalar(COUNT) or 0

    one, two = (app_of(Transept(config), handlers=[write_in_thread]) for _ in range(2))
    with TestClient(one) as first:
        with TestClient(two) as second:
            assert [first.post("/").json(), second.post("/").json()] == [1, 2]
        assert seen == ["start"]
        assert first.post("/").json() == 3
    assert (seen, gone(pg)) == (["start", "stop"], True)


# What becomes of the app


def test_handlers_that_are_registered_later_are_inside(file: File) -> None:
    @post("/late")
    async def late(db_session: AsyncSession) -> None:
        await db_session.execute(insert(2))

    @post("/routed")
    async def routed(db_session: AsyncSession) -> None:
        await db_session.execute(insert(3))

    for first in ([], [write]):
        app = app_of(Transept(config_of(file)), handlers=first)
        app.register(late)
        app.register(Router("/api", route_handlers=[routed]))
        with TestClient(app) as client:
            assert [client.post(path).status_code for path in ("/late", "/api/routed")] == [201, 201]
    assert file.held() == [2, 2, 3, 3]


def test_an_app_without_a_route_is_an_app(file: File) -> None:
    with TestClient(app_of(Transept(config_of(file)), handlers=[])) as client:
        assert client.get("/").status_code == 404


def test_a_subclass_of_litestar_keeps_what_it_does(file: File) -> None:
    class Own(Litestar):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.calls = 0
            super().__init__(*arguments, **settings)

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self.calls += 1
            await super().__call__(scope, receive, send)

    app = Own([write], plugins=[Transept(config_of(file))], openapi_config=None, logging_config=None)
    assert isinstance(app, Own)
    assert (type(app).__name__, type(app).__module__, type(app).__doc__) == (Own.__name__, __name__, Own.__doc__)
    with TestClient(app) as client:
        assert client.post("/").json() == 1
    assert app.calls == 2
    other = Own([write], plugins=[Transept(config_of(file))], openapi_config=None, logging_config=None)
    assert (other.calls, app.calls) == (0, 2)


def test_other_apps_of_the_same_class_stay_as_they_are(file: File) -> None:
    app_of(Transept(config_of(file)))
    assert type(Litestar([], openapi_config=None)) is Litestar
    assert type(app_of(handlers=[])) is Litestar


async def test_litestar_within_starlette_each_with_its_own_databases(file: File, other_file: File) -> None:
    """One unit for both, settled by the gate that is outermost."""

    @post("/{status:int}")
    async def inner_write(request: Request[Any, Any, Any], db_session: AsyncSession) -> Response[None]:
        await db_session.execute(insert(1))
        await outer_db.get_session(request).execute(insert(2))
        return Response(None, status_code=request.path_params["status"])

    inner = app_of(Transept(config_of(file)), handlers=[inner_write])

    async def outer_write(request: Any) -> JSONResponse:
        await request.state.outer_session.execute(insert(3))
        return JSONResponse(True)

    outer = Starlette(routes=[Mount("/inner", inner), Route("/", outer_write, methods=["POST"])])
    outer_db = StarletteTransept(
        CoreConfig(connection_string=other_file.url(), commit_mode="autocommit", bind_key="outer"), outer
    )
    async with calling(outer) as client:
        assert [(await client.post(path)).status_code for path in ("/inner/201", "/inner/409", "/")] == [201, 409, 200]
    assert (file.held(), other_file.held()) == ([1], [2, 3])


@pytest.mark.parametrize("middleware", [[], [lambda app: app]], ids=["bare", "covered"])
@pytest.mark.parametrize("handled", [True, False])
async def test_a_commit_that_fails_within_starlette_is_answered_by_litestars_handlers(
    pg: Postgres, file: File, handled: bool, middleware: Any
) -> None:
    @post("/")
    async def violate(db_session: AsyncSession) -> None:
        await db_session.execute(VIOLATION)

    def conflict(request: Request[Any, Any, Any], error: IntegrityError) -> Response[str]:
        return Response("handled", status_code=409)

    handlers: Any = {IntegrityError: conflict} if handled else {}
    config = config_of(pg)
    inner = app_of(Transept(config), handlers=[violate], exception_handlers=handlers, middleware=middleware)
    outer = Starlette(routes=[Mount("/inner", inner)])
    StarletteTransept(CoreConfig(connection_string=file.url(), bind_key="outer"), outer)
    async with calling(outer) as client:
        assert (await client.post("/inner/")).status_code == (409 if handled else 500)
        assert out_of_pool(config) == 0


async def test_starlette_within_litestar_each_with_its_own_databases(file: File, other_file: File) -> None:
    async def inner_write(request: Any) -> JSONResponse:
        await request.state.inner_session.execute(insert(1))
        await outer_db.get_session(request).execute(insert(2))
        return JSONResponse(True, status_code=int(request.query_params["status"]))

    mounted = Starlette(routes=[Route("/{rest:path}", inner_write, methods=["POST"])])
    StarletteTransept(
        CoreConfig(connection_string=other_file.url(), commit_mode="autocommit", bind_key="inner"), mounted
    )

    @asgi("/inner", is_mount=True, copy_scope=True)
    async def mount(scope: Any, receive: Any, send: Any) -> None:
        await mounted(scope, receive, send)

    outer_db = Transept(config_of(file))
    async with calling(app_of(outer_db, handlers=[write, mount])) as client:
        paths = "/inner/?status=201", "/inner/?status=409", "/"
        assert [(await client.post(path)).status_code for path in paths] == [201, 409, 201]
    assert (file.held(), other_file.held()) == ([1, 2], [1])


async def test_litestar_within_litestar_each_with_its_own_databases(file: File, other_file: File) -> None:
    inner = app_of(Transept(config_of(file)))

    @asgi("/inner", is_mount=True, copy_scope=True)
    async def mount(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    outer = app_of(Transept(config_of(other_file)), handlers=[write, mount])
    async with calling(outer) as client:
        assert [(await client.post(path)).status_code for path in ("/inner/", "/")] == [201, 201]
    assert (file.held(), other_file.held()) == ([1], [1])


async def test_a_configuration_of_litestars_serves_starlette_too(file: File) -> None:
    async def write_there(request: Any) -> JSONResponse:
        await request.state.db_session.execute(insert(2))
        return JSONResponse(True)

    config = config_of(file)
    beside = Starlette(routes=[Route("/", write_there, methods=["POST"])])
    StarletteTransept(config, beside)
    for app, status in ((app_of(Transept(config)), 201), (beside, 200)):
        async with calling(app) as client:
            assert (await client.post("/")).status_code == status
    assert file.held() == [1, 2]


async def test_a_session_that_outlives_its_request_says_so(file: File) -> None:
    kept: list[AsyncSession] = []

    @post("/")
    async def keep(db_session: AsyncSession) -> None:
        kept.append(db_session)

    async with calling(app_of(Transept(config_of(file)), handlers=[keep])) as client:
        assert (await client.post("/")).status_code == 201
    with pytest.raises(OutsideScope):
        await kept[0].execute(insert(1))


async def test_a_request_that_does_not_ask_takes_no_connection(pg: Postgres) -> None:
    @get("/")
    async def nothing() -> None: ...

    @get("/unused")
    async def unused(db_session: AsyncSession, db_engine: AsyncEngine) -> None: ...

    config = config_of(pg)
    async with calling(app_of(Transept(config), handlers=[nothing, unused])) as client:
        assert [(await client.get(path)).status_code for path in ("/", "/unused", "/missing")] == [200, 200, 404]
        assert (pg.backends(), out_of_pool(config)) == (0, 0)
    await config.stop()
