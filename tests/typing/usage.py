"""What type checkers must accept, and (each ignore is needed, or mypy and pyright complain) what they must refuse."""

from typing import Any, assert_type

from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.websockets import WebSocket

from transept import Unit, after_commit, current_unit, unit_of_work
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.extensions.starlette import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemySyncConfig,
    Transept,
)
from transept.gate.wsgi import WSGIGate

config = SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite://",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    engine_config=EngineConfig(pool_size=5),
    commit_mode="autocommit",
    extra_commit_statuses={404},
)
blocking = SQLAlchemySyncConfig(connection_string="sqlite://", bind_key="second")
app = Starlette()
db = Transept([config, blocking], app)

assert_type(db.get_async_config(), SQLAlchemyAsyncConfig)
assert_type(db.get_sync_engine("second"), Engine)
assert_type(db.get_async_engine(), AsyncEngine)
assert_type(config.get_engine(), AsyncEngine)
assert_type(blocking.get_engine(), Engine)


async def endpoint(request: Request, websocket: WebSocket) -> None:
    assert_type(db.get_async_session(request), AsyncSession)
    assert_type(db.get_sync_session(websocket, "second"), Session)
    assert_type(db.provide_async_session()(request), AsyncSession)
    assert_type(db.get_session(request), Any)
    async with unit_of_work() as unit:
        assert_type(unit, Unit)
    async with db.with_async_session() as session:
        assert_type(session, AsyncSession)
    assert_type(current_unit().doomed, str | None)
    after_commit(lambda: None)


def several() -> None:
    Transept(AsyncpgConfig(pool_config={"dsn": "postgresql://"}))
    Transept([config, SqliteConfig(pool_config={"database": ":memory:"}, bind_key="log")])


def refused() -> None:
    SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", commit_mode="autocomit")  # type: ignore[arg-type]
    SQLAlchemyAsyncConfig(conection_string="sqlite+aiosqlite://")  # type: ignore[call-arg]
    EngineConfig(pool_sise=5)  # type: ignore[call-arg]
    Transept("sqlite://")  # type: ignore[arg-type]
    after_commit("not a function")  # type: ignore[arg-type]
    WSGIGate(lambda environ, start_response: [b""], "sqlite://")  # type: ignore[arg-type]
