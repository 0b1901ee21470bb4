"""What Litestar injects for databases: by which annotations, and what the schema shows of it; and JSON."""

import importlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from held import COUNT, File, calling, insert
from litestar import Controller, Litestar, Request, Router, WebSocket, di, get, post, websocket
from litestar.di import Provide
from litestar.testing import TestClient
from litestar_app import config_of, sync_config_of
from servers.server import Server
from sqlalchemy import JSON, Column, Integer, MetaData, Table, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import StatementError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from transept import ImproperConfigurationError, OutsideScope, current_unit
from transept.alchemy import SQLAlchemyAsyncConfig as CoreConfig
from transept.extensions.litestar import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    Transept,
)

pytestmark = pytest.mark.anyio


class OwnSession(AsyncSession):
    """A session class of the app's own."""


def app_of(config: Any, *handlers: Any, **settings: Any) -> Litestar:
    return Litestar(
        handlers, plugins=[Transept(config)], **{"openapi_config": None, "logging_config": None, **settings}
    )


def answer(app: Litestar, path: str = "/", method: str = "GET") -> Any:
    with TestClient(app) as client:
        response = client.request(method, path)
    assert response.status_code < 300, response.text
    return response.json()


# Types


def test_session_and_engine_are_injected_as_what_they_are(file: File) -> None:
    @get("/")
    async def look(db_session: AsyncSession, db_engine: AsyncEngine) -> list[Any]:
        count = await db_session.scalar(COUNT)
        return [type(db_session).__name__, db_session.get_bind() is db_engine.sync_engine, count]

    assert answer(app_of(config_of(file), look)) == ["AsyncSession", True, 0]


def test_blocking_ones_are_injected_into_handlers_in_threads(file: File) -> None:
    @post("/", sync_to_thread=True)
    def write(db_session: Session, db_engine: Engine) -> list[Any]:
        db_session.execute(insert(1))
        return [isinstance(db_session, Session), db_session.get_bind() is db_engine, db_session.scalar(COUNT)]

    assert answer(app_of(sync_config_of(file), write), method="POST") == [True, True, 1]
    assert file.held() == [1]


def test_a_session_class_of_the_apps_own_passes_as_itself(file: File) -> None:
    @get("/")
    async def look(db_session: OwnSession) -> bool:
        return isinstance(db_session, OwnSession) and await db_session.scalar(COUNT) == 0

    config = config_of(file, session_config=AsyncSessionConfig(class_=OwnSession))
    assert answer(app_of(config, look)) is True


def test_a_wrong_annotation_is_told_by_litestar(file: File) -> None:
    @get("/")
    async def look(db_session: int) -> None: ...

    with TestClient(app_of(config_of(file), look)) as client:
        assert client.get("/").status_code == 500


STRINGS = """
from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import get

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session


@get("/")
async def look(db_session: AsyncSession, db_engine: AsyncEngine) -> list[str]:
    return [type(db_session).__name__, type(db_engine).__name__]


@get("/blocking", sync_to_thread=True)
def blocking(db_session: Session, db_engine: Engine) -> list[str]:
    return [type(db_session).__name__, type(db_engine).__name__]
"""


@pytest.fixture
def strings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of handlers whose annotations are strings."""
    (tmp_path / "handlers_with_strings.py").write_text(STRINGS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("handlers_with_strings")
    del sys.modules["handlers_with_strings"]


@pytest.mark.parametrize("kind", [SQLAlchemyAsyncConfig, CoreConfig])
def test_annotations_may_be_strings_whose_names_are_imported_for_type_checkers_alone(
    kind: Any, file: File, strings: Any
) -> None:
    config = kind(connection_string=file.url())
    assert answer(app_of(config, strings.look)) == ["AsyncSession", "AsyncEngine"]


def test_names_of_blocking_databases_may_be_strings_too(file: File, strings: Any) -> None:
    assert answer(app_of(sync_config_of(file), strings.blocking), "/blocking") == ["Session", "Engine"]


def test_names_of_the_apps_own_in_the_signature_namespace_win(file: File, strings: Any) -> None:
    config = config_of(file, session_config=AsyncSessionConfig(class_=OwnSession))
    app = app_of(config, strings.look, signature_namespace={"AsyncSession": OwnSession})
    assert app.signature_namespace["AsyncSession"] is OwnSession
    assert answer(app) == ["OwnSession", "AsyncEngine"]


def test_a_named_dependency_is_injected(file: File) -> None:
    """What Litestar asks for since it infers dependencies no longer without a warning."""
    asked: Any = di.NamedDependency[AsyncSession] if hasattr(di, "NamedDependency") else AsyncSession

    @get("/")
    async def look(db_session: asked) -> int:
        return await db_session.scalar(COUNT) or 0

    assert answer(app_of(config_of(file), look)) == 0


# Who asks


def test_a_dependency_of_a_dependency_shares_the_session(file: File) -> None:
    async def items(db_session: AsyncSession) -> Any:
        await db_session.execute(insert(1))
        return db_session

    async def more(items: Any, db_session: AsyncSession) -> Any:
        await db_session.execute(insert(2))
        return items

    @post("/", dependencies={"items": Provide(items), "more": Provide(more)})
    async def write(request: Request[Any, Any, Any], more: Any, db_session: AsyncSession) -> bool:
        return more is db_session is current_unit().session()

    assert answer(app_of(config_of(file), write), method="POST") is True
    assert file.held() == [1, 2]


def test_a_generator_dependency_shares_the_session_and_what_it_writes_before_the_response_is_kept(file: File) -> None:
    async def noted(db_session: AsyncSession) -> Any:
        await db_session.execute(insert(1))
        yield 1
        await db_session.execute(insert(2))

    @post("/", dependencies={"noted": Provide(noted)})
    async def write(noted: int, db_session: AsyncSession) -> int:
        return await db_session.scalar(COUNT) or 0

    assert answer(app_of(config_of(file), write), method="POST") == 1
    assert file.held() == [1, 2]


def test_guards_controllers_and_routers_share_the_session(file: File) -> None:
    seen: list[Any] = []

    class Items(Controller):
        path = "/items"

        @post("/")
        async def write(self, request: Request[Any, Any, Any], db_session: AsyncSession) -> bool:
            await db_session.execute(insert(1))
            return db.get_session(request) is db_session is seen[0]

    async def guard(connection: Any, handler: Any) -> None:
        seen.append(db.get_async_session(connection))

    db = Transept(config_of(file))
    app = Litestar([Router("/api", route_handlers=[Items], guards=[guard])], plugins=[db], openapi_config=None)
    assert answer(app, "/api/items", "POST") is True
    assert file.held() == [1]


def test_several_databases_in_one_handler_are_settled_together(file: File, other_file: File) -> None:
    @post("/")
    async def write(
        db_session: AsyncSession, other_session: AsyncSession, db_engine: AsyncEngine, other_engine: AsyncEngine
    ) -> bool:
        await db_session.execute(insert(1))
        await other_session.execute(insert(2))
        return db_engine is not other_engine

    configs = [config_of(file), config_of(other_file, bind_key="other")]
    assert answer(app_of(configs, write), method="POST") is True
    assert (file.held(), other_file.held()) == ([1], [2])


def test_async_and_blocking_databases_stand_in_one_app(file: File, other_file: File) -> None:
    @post("/async")
    async def on_the_loop(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))

    @post("/thread", sync_to_thread=True)
    def in_a_thread(other_session: Session) -> None:
        other_session.execute(insert(2))

    app = app_of([config_of(file), sync_config_of(other_file, bind_key="other")], on_the_loop, in_a_thread)
    with TestClient(app) as client:
        assert [client.post(path).status_code for path in ("/async", "/thread")] == [201, 201]
    assert (file.held(), other_file.held()) == ([1], [2])


@pytest.mark.parametrize("where", ["handler", "controller", "router"])
def test_a_dependency_is_overridden_below_the_app(file: File, where: str) -> None:
    own: Any = {"dependencies": {"db_session": Provide(lambda: "own", sync_to_thread=False)}}

    class Items(Controller):
        dependencies = own["dependencies"] if where == "controller" else {}

        @get("/", **(own if where == "handler" else {}))
        async def look(self, db_session: Any, db_engine: AsyncEngine) -> list[str]:
            return [db_session, type(db_engine).__name__]

    app = app_of(config_of(file), Router("/", route_handlers=[Items], **(own if where == "router" else {})))
    assert answer(app) == ["own", "AsyncEngine"]


async def test_a_session_that_the_app_caches_for_later_requests_says_that_its_request_is_over(file: File) -> None:
    """What ``use_cache=True`` keeps, Litestar keeps as long as the app runs."""
    db = Transept(config_of(file))

    async def cached(db_session: AsyncSession) -> Any:
        return db_session

    @post("/", dependencies={"cached": Provide(cached, use_cache=True)})
    async def write(cached: Any, db_session: AsyncSession) -> bool:
        try:
            await cached.execute(insert(1))
        except OutsideScope:
            await db_session.execute(insert(2))
        return cached is db_session

    async with calling(Litestar([write], plugins=[db], openapi_config=None)) as client:
        assert [(await client.post("/")).json() for _ in range(3)] == [True, False, False]
    assert file.held() == [1, 2, 2]


# Names of one's own, by the plugin


def test_provide_makes_dependencies_of_other_names(file: File, other_file: File) -> None:
    first, second = config_of(file), sync_config_of(other_file, bind_key="other")
    db = Transept([first, second])

    dependencies = {
        "one": db.provide_session(),
        "two": db.provide_session("other"),
        "three": db.provide_async_session(first),
        "four": db.provide_sync_session("other_session"),
        "five": db.provide_engine(),
        "six": db.provide_async_engine("default"),
        "seven": db.provide_sync_engine(second),
    }

    @get("/", dependencies=dependencies)
    async def look(
        one: AsyncSession,
        two: Session,
        three: AsyncSession,
        four: Session,
        five: AsyncEngine,
        six: AsyncEngine,
        seven: Engine,
        db_session: AsyncSession,
        other_engine: Engine,
    ) -> list[bool]:
        return [one is three is db_session, two is four, five is six is first.get_engine(), seven is other_engine]

    assert answer(Litestar([look], plugins=[db], openapi_config=None)) == [True] * 4


def test_provide_of_the_wrong_kind_is_refused_when_it_is_written(file: File, other_file: File) -> None:
    db = Transept([config_of(file), sync_config_of(other_file, bind_key="other")])
    for provide, key, words in (
        (db.provide_async_session, "other", "Expected an async config, but got a sync config"),
        (db.provide_sync_session, None, "Expected a sync config, but got an async config"),
        (db.provide_session, "othr", "Did you mean 'other'"),
    ):
        with pytest.raises(ImproperConfigurationError, match=words):
            provide(key)


def test_sessions_and_engines_are_had_from_the_plugin(file: File, other_file: File) -> None:
    first, second = config_of(file), sync_config_of(other_file, bind_key="other")
    db = Transept([first, second])

    @post("/")
    async def write(request: Request[Any, Any, Any], db_session: AsyncSession, other_session: Session) -> list[bool]:
        async with db.with_async_session() as own:
            await own.execute(insert(1))
        return [
            db.get_session(request) is db.get_session(request, "default") is db_session,
            db.get_async_session(request) is db_session,
            db.get_session(request, "other") is db.get_sync_session(request, second) is other_session,
            db.get_engine() is db.get_async_engine() is first.get_engine(),
            db.get_engine("other") is db.get_sync_engine("other") is second.get_engine(),
            own is not db_session,
        ]

    assert answer(Litestar([write], plugins=[db], openapi_config=None), method="POST") == [True] * 6
    with db.with_sync_session("other") as session:
        session.execute(insert(2))
    assert (file.held(), other_file.held()) == ([1], [2])
    assert db.config == [first, second]
    assert db.get_config() is db.get_async_config() is first
    assert db.get_sync_config("other") is db.get_config("other_session") is second


async def test_without_the_plugin_in_the_app_a_session_says_what_is_missing(file: File) -> None:
    db = Transept(config_of(file))

    @get("/")
    async def look(request: Request[Any, Any, Any]) -> str:
        with pytest.raises(OutsideScope, match=r"pass Transept\(config\) to Litestar\(plugins=\[\.\.\.\]\)"):
            db.get_session(request)
        return "told"

    async with calling(Litestar([look], openapi_config=None)) as client:
        assert (await client.get("/")).text == "told"


def test_a_websocket_has_them_injected(file: File) -> None:
    @websocket("/")
    async def socket(socket: WebSocket[Any, Any, Any], db_session: AsyncSession, db_engine: AsyncEngine) -> None:
        await socket.accept()
        await db_session.execute(insert(1))
        await socket.send_json(db_session.get_bind() is db_engine.sync_engine)
        await socket.close()

    with TestClient(app_of(config_of(file), socket)) as client, client.websocket_connect("/") as connection:
        assert connection.receive_json() is True
    assert file.held() == [1]


# The schema


def schema(*handlers: Any, plugins: Any = (), **settings: Any) -> bytes:
    app = Litestar(handlers, plugins=plugins, logging_config=None, **settings)
    with TestClient(app) as client:
        return client.get("/schema/openapi.json").content


@pytest.mark.filterwarnings("ignore:.*declared:DeprecationWarning")
def test_the_schema_shows_nothing_of_what_is_injected(file: File, other_file: File) -> None:
    configs = [config_of(file), sync_config_of(other_file, bind_key="other")]

    class Item(msgspec.Struct):
        id: UUID
        at: datetime

    def handlers(injected: bool) -> list[Any]:
        @get("/items")
        async def items_plain() -> list[Item]:
            return []

        @post("/items")
        async def add_plain(data: Item, page: int = 1) -> Item:
            return data

        @get("/items")
        async def items(db_session: AsyncSession, db_engine: AsyncEngine, other_session: Session) -> list[Item]:
            return []

        @post("/items")
        async def add(data: Item, db_session: AsyncSession, other_engine: Engine, page: int = 1) -> Item:
            return data

        for handler, name in ((items_plain, "items"), (add_plain, "add"), (items, "items"), (add, "add")):
            handler.operation_id = name
            handler.summary = name
        return [items, add] if injected else [items_plain, add_plain]

    plain = schema(*handlers(injected=False))
    assert b"/items" in plain
    assert schema(*handlers(injected=False), plugins=[Transept(configs)]) == plain
    assert schema(*handlers(injected=True), plugins=[Transept(configs)]) == plain


# JSON


class Point(msgspec.Struct):
    x: int
    y: int


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")
metadata = MetaData()
documents = Table("documents", metadata, Column("id", Integer, primary_key=True), Column("body", JSON))


@pytest.fixture(params=["sqlite", "asyncpg", "psycopg", "asyncmy"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'json.db'}"
    server: Server = request.getfixturevalue("mariadb" if request.param == "asyncmy" else "postgres")
    return str(server.url(request.param))


async def stored(config: Any, body: Any) -> tuple[Any, str]:
    """What the app reads of a JSON column that it wrote; and its text in the database."""
    try:
        async with config.create_session_maker()() as session:
            connection = await session.connection()
            await connection.run_sync(metadata.drop_all)
            await connection.run_sync(metadata.create_all)
            await session.execute(documents.insert().values(body=body))
            read = await session.scalar(documents.select().with_only_columns(documents.c.body))
            as_text = await session.scalar(text("SELECT CAST(body AS char(200)) FROM documents"))
            await connection.run_sync(metadata.drop_all)
            return read, str(as_text).strip()
    finally:
        await config.stop()


async def test_json_columns_are_written_with_litestars_codec(url: str) -> None:
    body = {"at": NOW, "id": ID, "point": Point(1, 2), "many": {3}}
    read, _ = await stored(SQLAlchemyAsyncConfig(connection_string=url), body)
    assert read == {"at": "2026-01-02T03:04:05Z", "id": str(ID), "point": {"x": 1, "y": 2}, "many": [3]}


async def test_a_codec_of_the_engine_config_wins(url: str) -> None:
    options = EngineConfig(json_serializer=lambda value: '"written"', json_deserializer=lambda text: ["read"])
    read, as_text = await stored(SQLAlchemyAsyncConfig(connection_string=url, engine_config=options), {"a": 1})
    assert (read, as_text) == (["read"], '"written"')


def test_a_blocking_database_writes_json_in_the_same_way(file: File) -> None:
    config = sync_config_of(file)
    metadata.create_all(config.get_engine())
    with config.create_session_maker()() as session:
        session.execute(documents.insert().values(body={"id": ID, "point": Point(1, 2)}))
        assert session.scalar(documents.select().with_only_columns(documents.c.body)) == {
            "id": str(ID),
            "point": {"x": 1, "y": 2},
        }


async def test_engines_of_the_apps_own_keep_their_codec(file: File) -> None:
    engine = create_async_engine(file.url())
    own: Any = {"engine_instance": engine}, {"engine_instance": engine, "session_maker": async_sessionmaker(engine)}
    for settings in own:
        with pytest.raises(StatementError, match="not JSON serializable"):
            await stored(SQLAlchemyAsyncConfig(**settings), ID)
    await engine.dispose()
