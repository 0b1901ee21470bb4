"""As `usage.py`, for Litestar: what its plugin, configurations and handlers are to type checkers."""

from collections.abc import Callable
from typing import Any, assert_type

from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.datastructures import State
from litestar.di import Provide
from litestar.types import BeforeMessageSendHookHandler, Message, Scope
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from transept import Registry
from transept.adapters.asyncpg import AsyncpgConfig
from transept.alchemy import SQLAlchemyAsyncConfig as CoreConfig
from transept.config import LitestarConfig
from transept.extensions.litestar import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyInitPlugin,
    SQLAlchemyPlugin,
    SQLAlchemySyncConfig,
    SyncSessionConfig,
    Transept,
    autocommit_before_send_handler,
    autocommit_handler_maker,
    default_before_send_handler,
    default_handler_maker,
    sync_autocommit_before_send_handler,
    sync_autocommit_handler_maker,
    sync_default_handler_maker,
)
from transept.extensions.litestar.plugins.init.config import asyncio, sync
from transept.sql.connection import Connection
from transept.sql.session import SQLSession


async def own_handler(message: Message, scope: Scope) -> None: ...


config = SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite://",
    before_send_handler="autocommit",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    engine_config=EngineConfig(pool_size=5),
    engine_dependency_key="engine",
    session_dependency_key="session",
    engine_app_state_key="engine",
    session_maker_app_state_key="maker",
    session_scope_key="_session",
    create_all=True,
    enable_touch_updated_timestamp_listener=False,
)
blocking = SQLAlchemySyncConfig(
    connection_string="sqlite://", bind_key="second", session_config=SyncSessionConfig(autoflush=False)
)
SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", before_send_handler=own_handler)
SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite://",
    before_send_handler=autocommit_handler_maker(
        commit_on_redirect=True,
        extra_commit_statuses={404},
        extra_rollback_statuses={201},
        session_scope_key="_session",
    ),
)
asyncio.SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite://", before_send_handler=asyncio.autocommit_before_send_handler
)
sync.SQLAlchemySyncConfig(connection_string="sqlite://", before_send_handler=sync.autocommit_handler_maker(True))
SQLAlchemySyncConfig(connection_string="sqlite://", before_send_handler=sync_autocommit_before_send_handler)
raw = AsyncpgConfig(extension_config={"litestar": LitestarConfig(commit_mode="autocommit", session_key="sql")})

db = Transept([config, blocking])
third = CoreConfig(connection_string="sqlite+aiosqlite://", bind_key="third")
app = Litestar([], plugins=[db, SQLAlchemyPlugin(third)])
SQLAlchemyPlugin(config)
SQLAlchemyPlugin([config, blocking])
SQLAlchemyPlugin([config])
SQLAlchemyInitPlugin(config=[blocking])
Transept(Registry([config]))
of_raw = Transept(raw)
Litestar([], plugins=[of_raw])
handlers: list[BeforeMessageSendHookHandler] = [
    own_handler,
    autocommit_before_send_handler,
    default_before_send_handler,
    autocommit_handler_maker(),
    default_handler_maker("_session"),
    sync_autocommit_handler_maker(),
    sync_default_handler_maker(),
]

assert_type(blocking.create_session_maker(), Callable[[], Session])
assert_type(config.signature_namespace, dict[str, Any])
assert_type(config.session_dependency_key, str)
assert_type(db.provide_session(), Provide)
assert_type(db.provide_async_session(config), Provide)
assert_type(db.provide_sync_session("second"), Provide)
assert_type(of_raw.provide_connection(raw), Provide)
assert_type(db.provide_engine(), Provide)
assert_type(db.provide_async_engine(), Provide)
assert_type(db.provide_sync_engine(blocking), Provide)
assert_type(db.get_sync_engine(blocking), Engine)


@post("/", dependencies={"mine": db.provide_async_session()})
async def write(
    request: Request[Any, Any, State], state: State, scope: Scope, mine: AsyncSession, second_session: Session
) -> None:
    assert_type(db.get_async_session(request), AsyncSession)
    assert_type(db.get_sync_session(request, blocking), Session)
    assert_type(of_raw.get_session(request, raw), SQLSession)
    assert_type(of_raw.get_connection(request, raw), Connection)
    assert_type(db.get_async_engine(), AsyncEngine)
    assert_type(config.create_session_maker(), Callable[[], AsyncSession])
    assert_type(config.create_app_state_items(), dict[str, Any])
    assert_type(config.provide_engine(state), AsyncEngine)
    assert_type(config.provide_session(state, scope), AsyncSession)
    assert_type(blocking.provide_engine(state), Engine)
    assert_type(blocking.provide_session(state, scope), Session)
    await config.create_all_metadata(request.app)
    blocking.create_all_metadata(request.app)
    config.update_app_state(request.app)
    async with db.with_async_session(config) as own:
        assert_type(own, AsyncSession)
    with db.with_sync_session("second") as own_blocking:
        assert_type(own_blocking, Session)


@get("/")
async def read(sql: SQLSession, sql_connection: Connection, sql_pool: Any) -> list[dict[str, Any]]:
    return await sql.select("SELECT 1 AS one")


@websocket("/socket")
async def socket(socket: WebSocket[Any, Any, State], session: AsyncSession) -> None:
    assert_type(db.get_async_session(socket), AsyncSession)


def refused() -> None:
    SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", before_send_handler="autocomit")  # type: ignore[arg-type]
    SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", session_dependancy_key="x")  # type: ignore[call-arg]
    SQLAlchemyPlugin(raw)  # type: ignore[arg-type]
    Transept("sqlite://")  # type: ignore[arg-type]
    autocommit_handler_maker(commit_on_redirct=True)  # type: ignore[call-arg]
    db.provide_session(1)  # type: ignore[arg-type]
