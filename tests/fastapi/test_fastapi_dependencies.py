"""Sessions and engines by `Depends`: which one, of which database, where, and what the schema shows of it."""

import asyncio
import inspect
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, Security, WebSocket
from fastapi.security import SecurityScopes
from held import COUNT, File, Postgres, calling, get, insert, out_of_pool, post, websocket
from pydantic import BaseModel
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from transept import DBConnect, ImproperConfigurationError, OutsideScope, Registry, current_unit, db_session
from transept.adapters.sqlite import SqliteConfig
from transept.extensions.fastapi import Transept

pytestmark = pytest.mark.anyio


async def test_a_dependency_gives_the_session_of_the_request(file: File) -> None:
    app = FastAPI()
    db = Transept(file.config(), app)

    @app.post("/", status_code=201)
    async def write(session: Annotated[AsyncSession, Depends(db.provide_async_session())]) -> None:
        await session.execute(insert(1))

    assert (await post(app)).status_code == 201
    assert file.held() == [1]


async def test_it_is_the_same_object_by_depends_by_state_by_request_and_by_unit(file: File) -> None:
    app = FastAPI()
    config = file.config()
    db = Transept(config, app)

    async def below(session: Annotated[AsyncSession, Depends(db.provide_session("db_session"))]) -> AsyncSession:
        return session

    @app.get("/")
    async def look(
        request: Request,
        one: Annotated[AsyncSession, Depends(db.provide_session())],
        two: Annotated[AsyncSession, Depends(db.provide_async_session("default"))],
        three: Annotated[AsyncSession, Depends(below)],
        uncached: Annotated[AsyncSession, Depends(db.provide_session(config), use_cache=False)],
    ) -> bool:
        assert isinstance(one, AsyncSession)
        four, five = request.state.db_session, db.get_session(request)
        return one is two is three is uncached is four is five is current_unit().session()

    assert (await get(app)).json() is True


async def test_a_request_that_does_nothing_with_its_session_takes_no_connection(file: File) -> None:
    app = FastAPI()
    config = file.config()
    db = Transept(config, app)

    @app.get("/")
    async def look(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> int:
        return out_of_pool(config)

    assert (await get(app)).json() == 0


@pytest.mark.parametrize("by", ["bind_key", "session_key", "config"])
async def test_two_fastapi_databases_by_depends(file: File, other_file: File, by: str) -> None:
    """The second database's dependency gives the second database's session, whatever it is asked for by."""
    first = file.config()
    second = other_file.config(bind_key="second", session_key="other")
    app = FastAPI()
    db = Transept([first, second], app)
    keys: Any = {"bind_key": ("default", "second"), "session_key": ("db_session", "other"), "config": (first, second)}
    one, two = keys[by]

    @app.post("/", status_code=201)
    async def write(
        in_first: Annotated[AsyncSession, Depends(db.provide_session(one))],
        in_second: Annotated[AsyncSession, Depends(db.provide_async_session(two))],
        also_second: Annotated[AsyncSession, Depends(db.provide_session(two))],
        first_engine: Annotated[AsyncEngine, Depends(db.provide_engine(one))],
        second_engine: Annotated[AsyncEngine, Depends(db.provide_async_engine(two))],
    ) -> None:
        assert in_second is also_second is not in_first
        assert (in_first.bind, in_second.bind) == (first_engine, second_engine)
        await in_first.execute(insert(1))
        await in_second.execute(insert(2))

    assert (await post(app)).status_code == 201
    assert (file.held(), other_file.held()) == ([1], [2])


async def test_each_of_two_databases_decides_by_its_own_mode(file: File, other_file: File) -> None:
    main, log = file.config(), other_file.sync_config(bind_key="log", extra_commit_statuses={409})
    app = FastAPI()
    db = Transept([main, log], app)

    @app.post("/", status_code=409)
    def write(
        session: Annotated[Session, Depends(db.provide_sync_session(log))],
        other: Annotated[AsyncSession, Depends(db.provide_async_session(main))],
    ) -> None:
        session.execute(insert(1))

    @app.post("/main", status_code=409)
    async def write_main(session: Annotated[AsyncSession, Depends(db.provide_session(main))]) -> None:
        await session.execute(insert(1))

    async with calling(app) as client:
        assert [(await client.post(path)).status_code for path in ("/", "/main")] == [409, 409]
    assert (file.held(), other_file.held()) == ([], [1])


async def test_an_unknown_key_fails_where_the_dependency_is_made(file: File, other_file: File) -> None:
    db = Transept([file.config(), other_file.sync_config(bind_key="reports")])
    for provide in (db.provide_session, db.provide_async_session, db.provide_sync_session, db.provide_engine):
        with pytest.raises(ImproperConfigurationError, match="Did you mean 'reports'"):
            provide("report")
        with pytest.raises(ImproperConfigurationError, match="SQLAlchemyAsyncConfig 'default' is none of these"):
            provide(file.config())
    unkeyed = Transept([file.config(bind_key="a"), other_file.config(bind_key="b")])
    with pytest.raises(ImproperConfigurationError, match="a key is needed: 'a', 'b'"):
        unkeyed.provide_session()


async def test_the_wrong_colour_fails_where_the_dependency_is_made(file: File, other_file: File) -> None:
    db = Transept([file.config(), other_file.sync_config(bind_key="reports")])
    with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
        db.provide_async_session("reports")
    with pytest.raises(ImproperConfigurationError, match="Expected a sync config, but got an async config"):
        db.provide_sync_engine()


async def test_a_registry_may_be_filled_after_the_dependencies_are_made(file: File) -> None:
    app = FastAPI()
    registry = Registry()
    db = Transept(registry, app)

    @app.get("/")
    async def look(session: Annotated[AsyncSession, Depends(db.provide_async_session("late"))]) -> int:
        return int(await session.scalar(COUNT) or 0)

    registry.add(file.config(bind_key="late"))
    assert (await get(app)).json() == 0


async def test_an_app_without_a_gate_says_what_to_do(file: File) -> None:
    app = FastAPI()
    db = Transept(file.config())

    @app.get("/")
    async def look(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> None: ...

    async with calling(app, raises=True) as client:
        with pytest.raises(OutsideScope, match="call init_app"):
            await client.get("/")


def test_dependencies_are_coroutine_functions_so_that_none_runs_in_a_thread(file: File, other_file: File) -> None:
    db = Transept([file.config(), other_file.sync_config(bind_key="s")])
    for dependency in (
        db.provide_session(),
        db.provide_async_session(),
        db.provide_sync_session("s"),
        db.provide_engine(),
        db.provide_async_engine(),
        db.provide_sync_engine("s"),
    ):
        assert inspect.iscoroutinefunction(dependency)


async def test_engines_come_by_depends_in_both_colours(file: File, other_file: File) -> None:
    app = FastAPI()
    main, reports = file.config(), other_file.sync_config(bind_key="s")
    db = Transept([main, reports], app)

    @app.get("/")
    async def look(
        one: Annotated[AsyncEngine, Depends(db.provide_async_engine())],
        two: Annotated[Engine, Depends(db.provide_sync_engine("s"))],
        either: Annotated[Engine | AsyncEngine, Depends(db.provide_engine(reports))],
    ) -> bool:
        return one is main.get_engine() and two is either is reports.get_engine()

    assert (await get(app)).json() is True


async def test_a_plain_endpoint_uses_a_blocking_session_in_its_thread(file: File) -> None:
    app = FastAPI()
    config = file.sync_config()
    db = Transept(config, app)

    @app.post("/", status_code=201)
    def write(session: Annotated[Session, Depends(db.provide_sync_session())]) -> int:
        session.execute(insert(1))
        return int(session.scalar(COUNT) or 0)

    async with calling(app, raises=True) as client:
        answers = await asyncio.gather(*(client.post("/") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [201] * 5
    assert file.held() == [1] * 5
    assert out_of_pool(config) == 0


async def test_plain_dependencies_and_a_plain_endpoint_share_the_session_across_threads(file: File) -> None:
    app = FastAPI()
    db = Transept(file.sync_config(), app)
    injected = Annotated[Session, Depends(db.provide_sync_session())]

    def first(session: injected) -> Session:
        session.execute(insert(1))
        return session

    def second(session: injected, before: Annotated[Session, Depends(first)]) -> Session:
        assert session is before
        session.execute(insert(2))
        return session

    @app.post("/", status_code=201)
    def write(session: Annotated[Session, Depends(second)]) -> None:
        session.execute(insert(3))

    assert (await post(app)).status_code == 201
    assert file.held() == [1, 2, 3]


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
async def test_an_async_endpoint_may_use_a_blocking_session(file: File) -> None:
    app = FastAPI()
    db = Transept(file.sync_config(), app)

    @app.post("/", status_code=201)
    async def write(session: Annotated[Session, Depends(db.provide_sync_session())]) -> None:
        session.execute(insert(1))

    assert (await post(app)).status_code == 201
    assert file.held() == [1]


async def test_a_websocket_endpoint_gets_its_session_by_depends(file: File) -> None:
    app = FastAPI()
    config = file.config()
    db = Transept(config, app)

    @app.websocket("/")
    async def socket(websocket: WebSocket, session: Annotated[AsyncSession, Depends(db.provide_session())]) -> None:
        assert session is websocket.state.db_session is db.get_async_session(websocket)
        await websocket.accept()
        async for v in websocket.iter_json():
            await session.execute(insert(v))
            assert v not in file.held()
            await websocket.send_json(v)
            assert v in file.held()

    assert [message.get("text") for message in await websocket(app, 1, 2)] == [None, "1", "2"]
    assert file.held() == [1, 2]
    assert out_of_pool(config) == 0


async def test_one_dependency_of_the_users_serves_http_and_websockets(file: File) -> None:
    app = FastAPI()
    db = Transept(file.config(), app)

    async def count(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> int:
        await session.execute(insert(1))
        return int(await session.scalar(COUNT) or 0)

    @app.post("/")
    async def over_http(counted: Annotated[int, Depends(count)]) -> int:
        return counted

    @app.websocket("/")
    async def socket(websocket: WebSocket, counted: Annotated[int, Depends(count)]) -> None:
        await websocket.accept()
        await websocket.send_json(counted)

    assert (await post(app)).json() == 1
    assert [message.get("text") for message in await websocket(app)] == [None, "2"]
    assert file.held() == [1, 1]


async def test_an_override_replaces_the_session_however_it_was_asked_for(file: File, other_file: File) -> None:
    config = file.config()
    app = FastAPI()
    db = Transept([config, other_file.config(bind_key="other")], app)

    @app.get("/")
    async def look(
        one: Annotated[Any, Depends(db.provide_session())],
        two: Annotated[Any, Depends(db.provide_async_session("db_session"))],
        three: Annotated[Any, Depends(db.provide_session(config))],
        engine: Annotated[Any, Depends(db.provide_engine())],
        other: Annotated[Any, Depends(db.provide_session("other"))],
    ) -> list[str]:
        return [one, two, three, engine, type(other).__name__]

    app.dependency_overrides[db.provide_async_session("default")] = lambda: "mine"
    app.dependency_overrides[db.provide_engine(config)] = lambda: "engine"
    assert (await get(app)).json() == ["mine", "mine", "mine", "engine", "AsyncSession"]


async def test_an_override_may_give_a_session_of_its_own(file: File) -> None:
    app = FastAPI()
    db = Transept(file.config(), app)

    @app.post("/", status_code=201)
    async def write(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> None:
        await session.execute(insert(1))

    async def rolled_back() -> Any:
        async with db.get_async_engine().connect() as connection, AsyncSession(connection) as session:
            yield session

    app.dependency_overrides[db.provide_session()] = rolled_back
    assert (await post(app)).status_code == 201
    assert file.held() == []
    app.dependency_overrides.clear()
    assert (await post(app)).status_code == 201
    assert file.held() == [1]


async def test_dependencies_of_a_router_of_an_app_and_of_a_route_share_the_unit(file: File) -> None:
    db = Transept(file.config())

    def writes(v: int) -> Any:
        async def write(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> None:
            await session.execute(insert(v))

        return Depends(write)

    app = FastAPI(dependencies=[writes(1)])
    db.init_app(app)
    router = APIRouter(dependencies=[writes(2)])
    outer = APIRouter(prefix="/outer", dependencies=[writes(3)])

    @router.post("/x", status_code=201, dependencies=[writes(4)])
    async def write(status: int, request: Request) -> None:
        assert await db.get_async_session(request).scalar(COUNT) == 4
        if status >= 400:
            raise ValueError

    outer.include_router(router)
    app.include_router(outer)
    async with calling(app) as client:
        assert (await client.post("/outer/x?status=500")).status_code == 500
        assert file.held() == []
        assert (await client.post("/outer/x?status=201")).status_code == 201
    assert file.held() == [1, 2, 3, 4]


async def test_a_mounted_app_shares_the_unit_and_has_a_schema_of_its_own(file: File, other_file: File) -> None:
    app, child = FastAPI(), FastAPI()
    outer = Transept(file.config(), app)
    inner = Transept(other_file.config(bind_key="inner"), child)

    @child.post("/x", status_code=201)
    async def write(
        a: Annotated[AsyncSession, Depends(outer.provide_session())],
        b: Annotated[AsyncSession, Depends(inner.provide_session())],
        fails: bool = False,
    ) -> None:
        await a.execute(insert(1))
        await b.execute(insert(2))
        if fails:
            raise ValueError

    app.mount("/in", child)
    async with calling(app) as client:
        assert (await client.post("/in/x?fails=1")).status_code == 500
        assert (file.held(), other_file.held()) == ([], [])
        assert (await client.post("/in/x")).status_code == 201
        assert (file.held(), other_file.held()) == ([1], [2])
        parameters = (await client.get("/in/openapi.json")).json()["paths"]["/x"]["post"]["parameters"]
    assert [one["name"] for one in parameters] == ["fails"]


async def test_security_dependencies_get_the_session_too(file: File) -> None:
    app = FastAPI()
    db = Transept(file.config(), app)

    async def user(scopes: SecurityScopes, session: Annotated[AsyncSession, Depends(db.provide_session())]) -> str:
        return f"{scopes.scope_str} {await session.scalar(COUNT)}"

    @app.get("/")
    async def look(
        one: Annotated[str, Security(user, scopes=["read"])],
        session: Annotated[AsyncSession, Depends(db.provide_session())],
        request: Request,
    ) -> str:
        assert session is db.get_session(request)
        return one

    assert (await get(app)).json() == "read 0"


def test_the_openapi_schema_does_not_show_our_dependencies(file: File, other_file: File) -> None:
    class Item(BaseModel):
        v: int

    db = Transept([file.config(), other_file.sync_config(bind_key="s")])

    async def nothing() -> None: ...

    def described(session: Any, blocking: Any, engine: Any) -> Any:
        app = FastAPI()
        db.init_app(app)

        async def given(session: Annotated[Any, Depends(session)], number: int = 1) -> int:
            return number

        @app.post("/items/{name}", status_code=201)
        async def create(
            name: str,
            item: Item,
            one: Annotated[int, Depends(given)],
            session: Annotated[Any, Depends(session)],
            blocking: Annotated[Any, Depends(blocking)],
            engine: Annotated[Any, Depends(engine)],
        ) -> Item:
            return item

        return app.openapi()

    ours = described(db.provide_session(), db.provide_sync_session("s"), db.provide_async_engine())
    assert ours == described(nothing, nothing, nothing)
    assert [one["name"] for one in ours["paths"]["/items/{name}"]["post"]["parameters"]] == ["name", "number"]


def test_the_openapi_schema_is_that_of_an_app_without_us(file: File) -> None:
    with_us, without = FastAPI(), FastAPI()
    db = Transept(file.config(), with_us)

    @with_us.get("/{name}", name="look")
    async def look(name: str, session: Annotated[Any, Depends(db.provide_session())]) -> str:
        return name

    @without.get("/{name}", name="look")
    async def look_only(name: str) -> str:
        return name

    assert with_us.openapi() == without.openapi()


async def test_a_database_that_must_be_prepared_is_prepared_by_depends(pg: Postgres) -> None:
    prepared: list[Any] = []

    async def prepare(connection: DBConnect) -> None:
        await asyncio.sleep(0.01)
        prepared.append(connection)

    connection = pg.dbconnect(before_create_session_handler=prepare, commit_mode="autocommit")
    app = FastAPI()
    db = Transept(connection, app)

    @app.post("/", status_code=201)
    async def write(
        one: Annotated[AsyncSession, Depends(db.provide_async_session())],
        two: Annotated[AsyncSession, Depends(db.provide_session(connection))],
        request: Request,
    ) -> None:
        assert one is two is await db_session(connection) is request.state.db_session
        await one.execute(insert(1))

    assert (await post(app)).status_code == 201
    assert (pg.held(), prepared, pg.out_of_pools()) == ([1], [connection], 0)


async def test_a_raw_session_comes_by_depends_too(tmp_path: Any) -> None:
    app = FastAPI()
    db = Transept(SqliteConfig(pool_config={"database": str(tmp_path / "raw.db")}, commit_mode="autocommit"), app)

    @app.get("/")
    def look(session: Annotated[Any, Depends(db.provide_session())]) -> int:
        return int(session.select_value("SELECT 41 + 1"))

    assert (await get(app)).json() == 42
