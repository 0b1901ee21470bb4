"""As `usage.py`, for Flask: what its sessions, engines and JSON are to type checkers."""

from typing import Any, assert_type

from flask import Flask, Response, jsonify
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from transept import Registry
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import DBConnect
from transept.config import FlaskConfig
from transept.database import Database
from transept.extensions.flask import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemySyncConfig,
    SyncSessionConfig,
    Transept,
    TranseptJSONProvider,
)
from transept.sql.connection import BlockingConnection
from transept.sql.session import BlockingSQLSession

config = SQLAlchemyAsyncConfig(
    engine_config=EngineConfig(url="sqlite+aiosqlite://"),
    session_config=AsyncSessionConfig(expire_on_commit=False),
    commit_mode="autocommit",
    create_all=True,
)
blocking = SQLAlchemySyncConfig(
    engine_config=EngineConfig(url="sqlite://"), session_config=SyncSessionConfig(autoflush=False), bind_key="second"
)
raw = AsyncpgConfig(extension_config={"flask": FlaskConfig(commit_mode="autocommit", session_key="sql")})
raw_blocking = SqliteConfig(pool_config={"database": ":memory:"}, bind_key="log")

app = Flask(__name__)
app.json = TranseptJSONProvider(app)
db = Transept([config, blocking], app)
of_raw = Transept(config=raw, app=app, timeout=5)
later = Transept(Registry([raw_blocking]))
later.init_app(app)

assert_type(db.config, list[Database])
assert_type(db.is_async_enabled, bool)
assert_type(db.get_config(), Any)
assert_type(db.get_async_config(), SQLAlchemyAsyncConfig)
assert_type(db.get_async_database(), SQLAlchemyAsyncConfig | DBConnect)
assert_type(db.get_sync_config("second"), SQLAlchemySyncConfig)
assert_type(db.get_engine(), Engine | AsyncEngine)
assert_type(db.get_sync_engine(blocking), Engine)
assert_type(db.get_async_engine(), AsyncEngine)


@app.post("/")
def plain() -> Response:
    assert_type(db.get_session(), Any)
    assert_type(db.get_session("second"), Any)
    assert_type(db.get_session(config), Any)  # the code around it says which colour it has
    assert_type(db.get_session(blocking), Session)
    assert_type(db.get_sync_session(), Session)
    assert_type(later.get_session(raw_blocking), BlockingSQLSession)
    assert_type(later.get_connection(raw_blocking), BlockingConnection)
    assert_type(later.get_connection(), Any)
    with db.with_session() as session:
        assert_type(session, Any)
    with db.with_session(blocking) as own:
        assert_type(own, Session)
    with later.with_session(raw_blocking) as raw_session:
        assert_type(raw_session, BlockingSQLSession)
    return jsonify(later.get_session(raw_blocking).select("SELECT 1 AS one"))


@app.get("/")
async def awaiting() -> list[dict[str, Any]]:
    assert_type(db.get_async_session(), AsyncSession)
    assert_type(of_raw.get_connection(raw), Any)
    async with db.with_session() as session:
        await session.commit()
    rows: list[dict[str, Any]] = await of_raw.get_session().select("SELECT 1 AS one")
    return rows


def refused() -> None:
    Transept("sqlite://", app)  # type: ignore[arg-type]
    Transept(config, app, 5)  # type: ignore[call-arg]
    Transept(config, timeout="5")  # type: ignore[arg-type]
    Transept(config, object())  # type: ignore[arg-type]
    db.get_session(1)  # type: ignore[call-overload]
    db.get_sync_session(bindkey="second")  # type: ignore[call-arg]
    db.get_async_session(1)  # type: ignore[arg-type]
