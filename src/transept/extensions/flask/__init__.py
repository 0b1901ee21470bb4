"""Transept for Flask: sessions of the request or app context, over sync and async databases."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, overload
from weakref import WeakSet

from flask import Flask, current_app, has_app_context
from flask.json.provider import DefaultJSONProvider

from transept._portal import Bridge
from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig
from transept.context import current_scope
from transept.database import Database, Databases
from transept.errors import ImproperConfigurationError, OutsideScope, UsageError
from transept.extensions._base import Configs, expected
from transept.extensions.flask._app import Tied, tied_to
from transept.extensions.flask._json import TranseptJSONProvider, also_records
from transept.gate.wsgi import TIMEOUT, close_all, seconds_of
from transept.hosts import host_for
from transept.registry import OwnUnit
from transept.unit import Unit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
    from transept.sql.connection import BlockingConnection
    from transept.sql.session import BlockingSQLSession
    from transept.sql.settings import BlockingSettings

__all__ = [
    "AsyncSessionConfig",
    "EngineConfig",
    "SQLAlchemyAsyncConfig",
    "SQLAlchemySyncConfig",
    "SyncSessionConfig",
    "Transept",
    "TranseptJSONProvider",
]


_telling = threading.Lock()


def __getattr__(name: str) -> Any:
    """SQLAlchemy is imported by those who use it."""
    if name in ("SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"):
        from transept import alchemy

        return getattr(alchemy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Transept(Configs):
    """Sessions for a Flask app: one for each request and database, settled before the response is passed on.

    An async database gives plain views a plain `Session`, and `async def` views an `AsyncSession`; both run on one
    event loop in the background, one for the process, made at first use.

    Args:
        config: one database, several, or a `Registry`.
        app: the app; or call `init_app` later. One object may serve several apps.
        timeout: how many seconds a thread waits for an async database, or for an `async def` view, at most.

    Raises:
        ImproperConfigurationError: no database, two of one name, or a timeout that is no number of seconds.
    """

    def __init__(
        self,
        config: Database | Iterable[Database] | Databases,
        app: Flask | None = None,
        *,
        timeout: float = TIMEOUT,
    ) -> None:
        super().__init__(config)
        self._timeout = seconds_of("timeout", timeout)
        self._ties: WeakSet[Tied] = WeakSet()
        self._known = 0  # databases that those have been told of
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Tie the databases to this app. Nothing is connected, and no table is created: first use does that.

        A second `Transept` on one app joins the first one's units of work. Called again for the same app, it does
        nothing.

        Raises:
            ImproperConfigurationError: it is no app, or another database on it has one of these names.
        """
        if not isinstance(app, Flask):
            raise ImproperConfigurationError(f"app={app!r}: a Flask app is needed.")
        tied = tied_to(app)
        if tied is None:
            tied = Tied(app, self._registry.copy(), self._timeout)
            app.__dict__["transept_tied"] = tied
            app.extensions["transept"] = self
            if isinstance(app.json, DefaultJSONProvider):
                app.json.default = also_records(app.json.default)
        else:
            tied.add(self._registry, self._timeout)
        self._ties.add(tied)

    @property
    def config(self) -> list[Database]:
        """The databases, in the order they were given."""
        return list(self._registry)

    @property
    def is_async_enabled(self) -> bool:
        """Whether one of the databases is async."""
        return any(not database.blocking for database in self._registry)

    @overload
    def get_session(self, bind_key: SQLAlchemySyncConfig) -> Session: ...
    @overload
    def get_session(self, bind_key: BlockingSettings) -> BlockingSQLSession: ...
    @overload
    def get_session(self, bind_key: Database | str | None = None) -> Any: ...
    def get_session(self, bind_key: Any = None) -> Any:
        """The session of this database, the same object each time in one request or app context.

        It takes a connection with its first statement. In a request it is settled before the response is passed on,
        and is over when the body is complete; in another app context it commits at a clean end. Of an async database it
        is an `AsyncSession` in an `async def` function, and a plain `Session` elsewhere; of a raw async database the
        SQL-first session of that colour.

        Raises:
            OutsideScope: no app context is pushed, or it is over.
            ImproperConfigurationError: no database has this key; or none was given, and none of several is called
                ``"default"`` (of a `Registry`, the first one is meant).
        """
        return self._unit().session(self._registry.get(bind_key))

    @overload
    def get_connection(self, bind_key: BlockingSettings) -> BlockingConnection: ...
    @overload
    def get_connection(self, bind_key: Database | str | None = None) -> Any: ...
    def get_connection(self, bind_key: Any = None) -> Any:
        """The driver's connection of a raw database, as a part of the same transaction; connects at first use.

        Raises:
            UsageError: the database is a SQLAlchemy one.
            OutsideScope, ImproperConfigurationError: as `get_session`.
        """
        return self._unit().connection(self._registry.get(bind_key))

    def get_sync_session(self, bind_key: Database | str | None = None) -> Session:
        """As `get_session`, for plain code: a `Session`, also of an async SQLAlchemy database.

        Raises:
            ImproperConfigurationError: it is no SQLAlchemy database.
            UsageError: the database is async, and this code runs on its event loop.
        """
        from sqlalchemy.orm import Session

        session = self.get_session(bind_key)
        if isinstance(session, Session):
            return session
        database = self._registry.get(bind_key)
        if not hasattr(database, "get_engine"):
            raise expected("sync", database)
        raise UsageError(
            f"get_sync_session() of database {database.key!r}, which is async, inside an `async def` function: use "
            "get_session() or get_async_session(), and await what it does."
        )

    def get_async_session(self, bind_key: Database | str | None = None) -> AsyncSession:
        """As `get_session`, for `async def` functions: the `AsyncSession` of an async SQLAlchemy database.

        Raises:
            ImproperConfigurationError: the database is a sync one, or no SQLAlchemy database.
            UsageError: this code is no `async def` function, and could not await what it does.
        """
        from sqlalchemy.ext.asyncio import AsyncSession

        database = self.get_async_database(bind_key)
        session = self.get_session(database)
        if isinstance(session, AsyncSession):
            return session
        raise UsageError(
            f"get_async_session() of database {database.key!r} in plain code, which cannot await: use get_session(), "
            "which gives a plain Session there, or make this an `async def` view."
        )

    @overload
    def with_session(self, bind_key: SQLAlchemySyncConfig) -> OwnUnit[Session]: ...
    @overload
    def with_session(self, bind_key: BlockingSettings) -> OwnUnit[BlockingSQLSession]: ...
    @overload
    def with_session(self, bind_key: Database | str | None = None) -> OwnUnit[Any]: ...
    def with_session(self, bind_key: Any = None) -> OwnUnit[Any]:
        """``with db.with_session() as session``, or ``async with``: a new session in a unit of work of its own.

        Committed at a clean end of the block, else rolled back. It needs no app context.
        """
        database = self._registry.get(bind_key)
        return OwnUnit(database, connection=False, host=host_for([database], self._bridge()))

    def close(self) -> None:
        """Close the engines and pools, and the background loop if nothing else uses it. The next use opens them again.

        For the end of tests and scripts. At the end of the process the background loop closes by itself.
        """
        close_all(list(self._registry), host_for(self._registry, self._bridge()))

    def _bridge(self) -> Bridge:
        return Bridge(self._timeout)

    def _unit(self) -> Unit:
        if len(self._registry) != self._known:
            self._tell_of_more()
        scope = current_scope()
        if scope is not None:
            tied = scope.origin()
            if isinstance(tied, Tied) and tied not in self._ties:
                raise OutsideScope(
                    f"the app {tied.app.name!r} does not know these databases, though it has another Transept: call "
                    "init_app(app) of this one, too."
                )
            return scope.open()
        if has_app_context() and tied_to(current_app) is None:
            raise OutsideScope(
                f"the app {current_app.name!r} has no Transept: pass app= to Transept(...), or call init_app(app)."
            )
        raise OutsideScope(
            "there is no app context here, so no unit of work that could keep anything: push one with "
            "`with app.app_context():`, or use `with db.with_session() as session:`."
        )

    def _tell_of_more(self) -> None:
        """A `Registry` was filled after `init_app`."""
        with _telling:
            for tied in list(self._ties):
                tied.add(self._registry, self._timeout)
            self._known = len(self._registry)
