"""The reference of the Litestar configurations: every name, default and method of it."""

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from held import COUNT, File, insert
from litestar import Litestar, Request, Response, get, post
from litestar.datastructures import State
from litestar.testing import TestClient
from litestar.types import Scope
from sqlalchemy import Column, Integer, MetaData, Table, create_engine
from sqlalchemy import inspect as tables_of
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from transept import ImproperConfigurationError
from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig
from transept.extensions import litestar
from transept.extensions.litestar import SQLAlchemyInitPlugin, SQLAlchemyPlugin
from transept.extensions.litestar.plugins.init.config import asyncio, common, sync

pytestmark = pytest.mark.anyio

OF_LITESTAR = {
    "before_send_handler": None,
    "engine_dependency_key": "db_engine",
    "session_dependency_key": "db_session",
    "engine_app_state_key": "db_engine",
    "session_maker_app_state_key": "session_maker_class",
    "session_scope_key": "_sqlalchemy_db_session",
}
OF_BOTH = {
    "connection_string": None,
    "session_maker": None,
    "engine_instance": None,
    "create_all": False,
    "metadata": None,
    "enable_touch_updated_timestamp_listener": True,
}
CLASSES = [
    pytest.param(
        asyncio.SQLAlchemyAsyncConfig,
        {"create_engine_callable": create_async_engine, "session_maker_class": async_sessionmaker},
        {"engine_config": EngineConfig, "session_config": AsyncSessionConfig},
        id="asyncio",
    ),
    pytest.param(
        sync.SQLAlchemySyncConfig,
        {"create_engine_callable": create_engine, "session_maker_class": sessionmaker},
        {"engine_config": EngineConfig, "session_config": SyncSessionConfig},
        id="sync",
    ),
]
URLS = {"SQLAlchemyAsyncConfig": "sqlite+aiosqlite://", "SQLAlchemySyncConfig": "sqlite://"}
METHODS = {
    "create_session_maker": [],
    "provide_engine": ["state"],
    "provide_session": ["state", "scope"],
    "create_all_metadata": ["app"],
    "create_app_state_items": [],
    "update_app_state": ["app"],
}
HANDLERS = (
    "autocommit_before_send_handler",
    "autocommit_handler_maker",
    "default_before_send_handler",
    "default_handler_maker",
)


@pytest.fixture(params=["asyncio", "sync"])
def config(request: pytest.FixtureRequest, file: File) -> Iterator[Any]:
    """A configuration of each colour of one file."""
    if request.param == "asyncio":
        yield asyncio.SQLAlchemyAsyncConfig(connection_string=file.url())
    else:
        made = sync.SQLAlchemySyncConfig(connection_string=file.url("pysqlite"))
        yield made
        made.get_engine().dispose()


@pytest.mark.parametrize(("kind", "callables", "made"), CLASSES)
def test_each_setting_has_the_default_of_the_reference(kind: Any, callables: Any, made: Any) -> None:
    config = kind(connection_string=URLS[kind.__name__])
    there = {**OF_LITESTAR, **OF_BOTH, **callables}
    del there["connection_string"]
    assert {setting: getattr(config, setting) for setting in there} == there
    assert {setting: type(getattr(config, setting)) for setting in made} == made
    defaults = {one.name: one.default for one in dataclasses.fields(kind)}
    assert {setting: defaults[setting] for setting in {**OF_LITESTAR, **OF_BOTH}} == {**OF_LITESTAR, **OF_BOTH}


@pytest.mark.parametrize(("kind", "callables", "made"), CLASSES)
def test_init_takes_each_setting_of_the_reference(kind: Any, callables: Any, made: Any) -> None:
    parameters = inspect.signature(kind).parameters
    wanted = {*OF_LITESTAR, *OF_BOTH, *callables, *made}
    assert wanted <= set(parameters)
    assert {name: parameters[name].default for name in OF_LITESTAR} == OF_LITESTAR
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in wanted)


@pytest.mark.parametrize(("kind", "callables", "made"), CLASSES)
def test_the_one_setting_that_is_not_there_is_refused_by_name(kind: Any, callables: Any, made: Any) -> None:
    with pytest.raises(ImproperConfigurationError, match=rf"{kind.__name__} has no option 'alembic_config'"):
        kind(connection_string=URLS[kind.__name__], alembic_config=object())


@pytest.mark.parametrize("mode", ["autocommit", "autocommit_include_redirects"])
@pytest.mark.parametrize(("kind", "callables", "made"), CLASSES)
def test_the_words_for_before_send_handler_are_those_of_the_reference(
    kind: Any, callables: Any, made: Any, mode: str
) -> None:
    policy = kind(connection_string=URLS[kind.__name__], before_send_handler=mode).policy
    assert [policy.keeps(status) for status in (200, 302, 404)] == [True, mode != "autocommit", False]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("plugins.init.config.asyncio", ("SQLAlchemyAsyncConfig", *HANDLERS)),
        ("plugins.init.config.sync", ("SQLAlchemySyncConfig", *HANDLERS)),
        ("plugins.init.config.common", ("SESSION_SCOPE_KEY",)),
        ("plugins.init.config", ("EngineConfig", "SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig")),
        ("plugins.init", ("SQLAlchemyAsyncConfig", "SQLAlchemyInitPlugin", "SQLAlchemySyncConfig")),
        ("plugins", ("SQLAlchemyAsyncConfig", "SQLAlchemyInitPlugin", "SQLAlchemyPlugin", "SQLAlchemySyncConfig")),
    ],
)
def test_each_module_has_its_names(module: str, names: tuple[str, ...]) -> None:
    there = importlib.import_module(f"transept.extensions.litestar.{module}")
    assert sorted(there.__all__) == sorted(names)
    assert all(getattr(there, name) is not None for name in names)


def test_the_names_of_the_extension_are_all_there() -> None:
    wanted = {
        "AsyncSessionConfig",
        "EngineConfig",
        "SQLAlchemyAsyncConfig",
        "SQLAlchemyInitPlugin",
        "SQLAlchemyPlugin",
        "SQLAlchemySyncConfig",
        "SyncSessionConfig",
        "Transept",
        *(f"{colour}{name}" for colour in ("", "async_", "sync_") for name in HANDLERS),
    }
    assert set(litestar.__all__) == wanted
    assert all(getattr(litestar, name) is not None for name in wanted)
    with pytest.raises(AttributeError, match="no attribute 'SQLAlchemyDTOs'"):
        _ = litestar.SQLAlchemyDTOs  # type: ignore[attr-defined]


def test_names_without_a_colour_are_the_async_ones_but_in_the_sync_module() -> None:
    for name in HANDLERS:
        assert getattr(litestar, name) is getattr(asyncio, name) is getattr(litestar, f"async_{name}")
        assert getattr(litestar, f"sync_{name}") is getattr(sync, name)
    assert litestar.SQLAlchemyAsyncConfig is asyncio.SQLAlchemyAsyncConfig
    assert litestar.SQLAlchemySyncConfig is sync.SQLAlchemySyncConfig
    assert common.SESSION_SCOPE_KEY == "_sqlalchemy_db_session"


@pytest.mark.parametrize("module", [asyncio, sync])
def test_the_handler_makers_have_the_parameters_of_the_reference(module: Any) -> None:
    def parameters(maker: Any) -> dict[str, Any]:
        return {name: one.default for name, one in inspect.signature(maker).parameters.items()}

    assert parameters(module.default_handler_maker) == {"session_scope_key": "_sqlalchemy_db_session"}
    made = parameters(module.autocommit_handler_maker)
    assert made == {
        "commit_on_redirect": False,
        "extra_commit_statuses": None,
        "extra_rollback_statuses": None,
        "session_scope_key": "_sqlalchemy_db_session",
    }
    assert list(made) == [
        "commit_on_redirect", "extra_commit_statuses", "extra_rollback_statuses", "session_scope_key",
    ]  # fmt: skip


@pytest.mark.parametrize("module", [asyncio, sync])
def test_the_handlers_take_a_message_and_a_scope(module: Any) -> None:
    made = module.autocommit_handler_maker(True, {418}, {201}, "mine")
    for handler in (module.default_before_send_handler, module.autocommit_before_send_handler, made):
        assert list(inspect.signature(handler).parameters) == ["message", "scope"]
        assert inspect.iscoroutinefunction(type(handler).__call__) is (module is asyncio)


@pytest.mark.parametrize("plugin", [SQLAlchemyPlugin, SQLAlchemyInitPlugin, litestar.Transept])
def test_the_plugin_takes_one_configuration_or_several(config: Any, plugin: Any) -> None:
    assert plugin(config).config == plugin([config]).config == plugin(config=config).config == [config]


def test_the_methods_take_what_they_take_in_the_reference(config: Any) -> None:
    assert {name: list(inspect.signature(getattr(config, name)).parameters) for name in METHODS} == METHODS
    is_async = isinstance(config, asyncio.SQLAlchemyAsyncConfig)
    assert inspect.iscoroutinefunction(config.create_all_metadata) is is_async
    assert isinstance(type(config).signature_namespace, property)


async def test_create_session_maker_gives_the_one_maker_there_is(file: File) -> None:
    config = asyncio.SQLAlchemyAsyncConfig(connection_string=file.url())
    assert config.create_session_maker() is config.create_session_maker()
    async with config.create_session_maker()() as session:
        assert await session.scalar(COUNT) == 0
    await config.stop()
    maker: Any = async_sessionmaker(create_async_engine(file.url()))
    assert asyncio.SQLAlchemyAsyncConfig(session_maker=maker).create_session_maker() is maker


def test_engine_and_session_are_provided_for_a_state_and_a_scope(config: Any) -> None:
    blocking = isinstance(config, sync.SQLAlchemySyncConfig)

    @get("/", sync_to_thread=False)
    def look(state: State, scope: Scope) -> list[bool]:
        session = config.provide_session(state, scope)
        return [
            isinstance(session, Session if blocking else AsyncSession),
            config.provide_session(state, scope) is session,
            config.provide_engine(state) is config.get_engine(),
            isinstance(config.provide_engine(state), Engine if blocking else AsyncEngine),
        ]

    with TestClient(Litestar([look], plugins=[SQLAlchemyInitPlugin(config)])) as client:
        assert client.get("/").json() == [True] * 4


def test_state_items_are_engine_and_maker_and_lie_on_the_app(config: Any) -> None:
    @get("/", sync_to_thread=False)
    def look(state: State) -> list[bool]:
        items = config.create_app_state_items()
        own = Litestar()
        config.update_app_state(own)
        return [
            items == {"db_engine": config.get_engine(), "session_maker_class": config.create_session_maker()},
            all(state[key] is item is own.state[key] for key, item in items.items()),
        ]

    with TestClient(Litestar([look], plugins=[SQLAlchemyInitPlugin(config)])) as client:
        assert client.get("/").json() == [True, True]


async def test_create_all_metadata_makes_the_missing_tables(config: Any, file: File) -> None:
    config.metadata = MetaData()
    Table("made", config.metadata, Column("id", Integer, primary_key=True))
    for _ in range(2):
        made = config.create_all_metadata(Litestar())
        if isinstance(config, asyncio.SQLAlchemyAsyncConfig):
            await made
    engine = create_engine(file.url("pysqlite"))
    assert "made" in tables_of(engine).get_table_names()
    engine.dispose()
    if isinstance(config, asyncio.SQLAlchemyAsyncConfig):
        await config.stop()


def test_the_signature_namespace_has_the_names_that_handlers_write() -> None:
    asynchronous = asyncio.SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://")
    assert {
        "AsyncSession": AsyncSession,
        "AsyncEngine": AsyncEngine,
    }.items() <= asynchronous.signature_namespace.items()
    blocking = sync.SQLAlchemySyncConfig(connection_string="sqlite://")
    assert {"Session": Session, "Engine": Engine}.items() <= blocking.signature_namespace.items()


@pytest.mark.parametrize(
    ("handler", "kept"),
    [
        (None, []),
        ("autocommit", [201]),
        ("autocommit_include_redirects", [201, 303]),
        (asyncio.default_before_send_handler, []),
        (asyncio.autocommit_before_send_handler, [201]),
        (asyncio.default_handler_maker(), []),
        (asyncio.autocommit_handler_maker(), [201]),
        (asyncio.autocommit_handler_maker(commit_on_redirect=True), [201, 303]),
        (asyncio.autocommit_handler_maker(extra_commit_statuses={404}), [201, 404]),
        (asyncio.autocommit_handler_maker(True, {404}, {201}), [303, 404]),
    ],
)
def test_what_a_handler_keeps(file: File, handler: Any, kept: list[int]) -> None:
    @post("/{status:int}")
    async def write(request: Request[Any, Any, Any], db_session: AsyncSession) -> Response[None]:
        status = request.path_params["status"]
        await db_session.execute(insert(status))
        return Response(None, status_code=status)

    config = asyncio.SQLAlchemyAsyncConfig(connection_string=file.url(), before_send_handler=handler)
    with TestClient(Litestar([write], plugins=[SQLAlchemyPlugin(config)])) as client:
        for status in (201, 303, 404):
            assert client.post(f"/{status}", follow_redirects=False).status_code == status
    assert file.held() == kept
