"""Transept for FastAPI: all of Starlette's, and dependencies for `Depends`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig
from transept.database import Connects, Database, Databases, Gives
from transept.extensions._base import unit_of
from transept.extensions.starlette import (
    AppExtension,
    add_starlette_http_db_session_middleware,
    starlette_http_db_session_middleware,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

__all__ = [
    "AsyncSessionConfig",
    "EngineConfig",
    "SQLAlchemyAsyncConfig",
    "SQLAlchemySyncConfig",
    "SyncSessionConfig",
    "Transept",
    "add_fastapi_http_db_session_middleware",
    "fastapi_http_db_session_middleware",
]

add_fastapi_http_db_session_middleware = add_starlette_http_db_session_middleware
fastapi_http_db_session_middleware = starlette_http_db_session_middleware

S = TypeVar("S")
Dependency = Callable[..., Coroutine[Any, Any, Any]]


def __getattr__(name: str) -> Any:
    """SQLAlchemy is imported by those who use it."""
    if name in ("SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"):
        from transept import alchemy

        return getattr(alchemy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Transept(AppExtension):
    """Request-scoped sessions for a FastAPI app; see `AppExtension`.

    What `provide_...` return is for ``Depends(...)`` in HTTP and WebSocket endpoints and in other dependencies. A
    database has one dependency for its session and one for its engine, whichever way they are asked for, so that
    ``app.dependency_overrides[db.provide_session()]`` replaces it everywhere. They are coroutine functions, because
    FastAPI runs plain ones in threads.

    Raises:
        ImproperConfigurationError: no database has the key that `provide_...` was called with, or it is of the other
            colour. For a `Registry` that is still empty, the first request finds that out.
    """

    def __init__(self, config: Database | Iterable[Database] | Databases, app: Starlette | None = None) -> None:
        super().__init__(config, app)
        self._dependencies: dict[Any, Dependency] = {}

    @overload
    def provide_session(self, key: Gives[S]) -> Callable[[HTTPConnection], Coroutine[Any, Any, S]]: ...
    @overload
    def provide_session(
        self, key: Database | str | None = None
    ) -> Callable[[HTTPConnection], Coroutine[Any, Any, Any]]: ...
    def provide_session(self, key: Any = None) -> Callable[[HTTPConnection], Coroutine[Any, Any, Any]]:
        """A dependency: what `get_session` returns for the request."""
        return self._dependency(self.get_config, key, self._session_of)

    @overload
    def provide_connection(self, key: Connects[S]) -> Callable[[HTTPConnection], Coroutine[Any, Any, S]]: ...
    @overload
    def provide_connection(
        self, key: Database | str | None = None
    ) -> Callable[[HTTPConnection], Coroutine[Any, Any, Any]]: ...
    def provide_connection(self, key: Any = None) -> Callable[[HTTPConnection], Coroutine[Any, Any, Any]]:
        """A dependency: what `get_connection` returns for the request."""
        return self._dependency(self.get_config, key, self._connection_of)

    def provide_async_session(
        self, key: Database | str | None = None
    ) -> Callable[[HTTPConnection], Coroutine[Any, Any, AsyncSession]]:
        """As `provide_session`, for an async SQLAlchemy database."""
        return self._dependency(self.get_async_database, key, self._session_of)

    def provide_sync_session(
        self, key: Database | str | None = None
    ) -> Callable[[HTTPConnection], Coroutine[Any, Any, Session]]:
        """As `provide_session`, for a sync SQLAlchemy database; for plain `def` endpoints, which run in threads."""
        return self._dependency(self.get_sync_config, key, self._session_of)

    def provide_engine(
        self, key: Database | str | None = None
    ) -> Callable[[], Coroutine[Any, Any, Engine | AsyncEngine]]:
        """A dependency: what `get_engine` returns."""
        return self._dependency(self.get_config, key, self._engine_of)

    def provide_async_engine(self, key: Database | str | None = None) -> Callable[[], Coroutine[Any, Any, AsyncEngine]]:
        """As `provide_engine`, for an async SQLAlchemy database."""
        return self._dependency(self.get_async_database, key, self._engine_of)

    def provide_sync_engine(self, key: Database | str | None = None) -> Callable[[], Coroutine[Any, Any, Engine]]:
        """As `provide_engine`, for a sync SQLAlchemy database."""
        return self._dependency(self.get_sync_config, key, self._engine_of)

    def _session_of(self, find: Callable[[], Database]) -> Dependency:
        async def provide(connection: HTTPConnection) -> Any:
            return await unit_of(connection).prepared(find())

        return provide

    def _connection_of(self, find: Callable[[], Database]) -> Dependency:
        async def provide(connection: HTTPConnection) -> Any:
            return unit_of(connection).connection(find())

        return provide

    def _engine_of(self, find: Callable[[], Database]) -> Dependency:
        async def provide() -> Any:
            return self.get_engine(find())

        return provide

    def _dependency(
        self,
        find: Callable[[Database | str | None], Any],
        key: Database | str | None,
        make: Callable[[Callable[[], Database]], Dependency],
    ) -> Dependency:
        known: Database | None = find(key) if len(self._registry) else None
        name = (make, (find, key) if known is None else known)
        if name not in self._dependencies:
            self._dependencies[name] = make(lambda: find(key) if known is None else known)
        return self._dependencies[name]
