"""As `usage.py`, for FastAPI: what its dependencies are to type checkers."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.requests import HTTPConnection
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from transept import Registry
from transept.extensions.fastapi import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemySyncConfig,
    Transept,
)

config = SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite://",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    engine_config=EngineConfig(pool_size=5),
)
blocking = SQLAlchemySyncConfig(connection_string="sqlite://", bind_key="second")
app = FastAPI()
db = Transept([config, blocking], app)
with_lifespan = FastAPI(lifespan=Transept(Registry([config])).lifespan)

assert_type(db.provide_session(), Callable[[HTTPConnection], Coroutine[Any, Any, Any]])
assert_type(db.provide_async_session(config), Callable[[HTTPConnection], Coroutine[Any, Any, AsyncSession]])
assert_type(db.provide_sync_session("second"), Callable[[HTTPConnection], Coroutine[Any, Any, Session]])
assert_type(db.provide_engine(), Callable[[], Coroutine[Any, Any, Engine | AsyncEngine]])
assert_type(db.provide_async_engine(), Callable[[], Coroutine[Any, Any, AsyncEngine]])
assert_type(db.provide_sync_engine(blocking), Callable[[], Coroutine[Any, Any, Engine]])


@app.post("/")
async def write(
    request: Request,
    session: Annotated[AsyncSession, Depends(db.provide_async_session())],
    other: Annotated[Session, Depends(db.provide_sync_session(blocking))],
    as_before: AsyncSession = Depends(db.provide_async_session()),  # noqa: B008 - the older way to write it
) -> None:
    assert_type(await db.provide_async_session()(request), AsyncSession)
    assert_type(db.get_async_session(request), AsyncSession)
    assert_type(db.get_sync_session(request, blocking), Session)
    await session.commit()
    other.commit()


@app.websocket("/")
async def socket(websocket: WebSocket) -> None:
    assert_type(await db.provide_sync_session("second")(websocket), Session)


app.dependency_overrides[db.provide_session()] = lambda: None


def refused() -> None:
    db.provide_session(1)  # type: ignore[call-overload]
    db.provide_async_session("a", "b")  # type: ignore[call-arg]
    Transept("sqlite://", app)  # type: ignore[arg-type]
