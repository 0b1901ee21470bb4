"""What the extensions have in common: databases, sessions and engines by key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload
from weakref import ref

from transept.context import LOOP
from transept.database import Connects, Database, Databases, Gives, Pooled
from transept.errors import ImproperConfigurationError, OutsideScope
from transept.gate.asgi import unit_scope
from transept.lifecycle import running
from transept.transaction import new_unit_of_work
from transept.unit import Unit

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from transept.alchemy import DBConnect, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

__all__ = ["Configs", "Extension", "HasScope", "Home", "expected", "unit_of", "unit_of_scope"]

S = TypeVar("S")


class HasScope(Protocol):
    """A request or a WebSocket, of whatever framework."""

    @property
    def scope(self) -> Any:
        """Its ASGI scope."""
        ...


class Configs:
    """Databases by key, and their engines.

    A key is a bind key, a session key, or the database itself.

    Args:
        config: one database, several, or a `Registry`.

    Raises:
        ImproperConfigurationError: no database, or two of one name.
    """

    def __init__(self, config: Database | Iterable[Database] | Databases) -> None:
        self._registry = Databases.of(config)

    # Configurations, by bind key or session key.

    def get_config(self, key: Database | str | None = None) -> Any:
        """The database with this key; without one the only one, or the one named ``"default"``."""
        return self._registry.get(key)

    def get_async_config(self, key: Database | str | None = None) -> SQLAlchemyAsyncConfig:
        """As `get_config`, for an async SQLAlchemy database.

        Raises:
            ImproperConfigurationError: it is another kind of database.
        """
        from transept.alchemy import SQLAlchemyAsyncConfig

        config = self._registry.get(key)
        if not isinstance(config, SQLAlchemyAsyncConfig):
            raise expected("async", config)
        return config

    def get_async_database(self, key: Database | str | None = None) -> SQLAlchemyAsyncConfig | DBConnect:
        """As `get_async_config`, and for a `DBConnect`: whatever gives an `AsyncSession`."""
        from transept.alchemy import DBConnect

        config = self._registry.get(key)
        return config if isinstance(config, DBConnect) else self.get_async_config(key)

    def get_sync_config(self, key: Database | str | None = None) -> SQLAlchemySyncConfig:
        """As `get_config`, for a sync SQLAlchemy database.

        Raises:
            ImproperConfigurationError: it is another kind of database.
        """
        from transept.alchemy import SQLAlchemySyncConfig

        config = self._registry.get(key)
        if not isinstance(config, SQLAlchemySyncConfig):
            raise expected("sync", config)
        return config

    # Sessions outside of requests.

    @asynccontextmanager
    async def with_async_session(self, key: Database | str | None = None) -> AsyncIterator[AsyncSession]:
        """A new session in a unit of work of its own, committed at a clean end of the block, else rolled back."""
        config = self.get_async_database(key)
        async with new_unit_of_work() as unit:
            yield await unit.prepared(config)

    @contextmanager
    def with_sync_session(self, key: Database | str | None = None) -> Iterator[Session]:
        """As `with_async_session`, blocking."""
        config = self.get_sync_config(key)
        with new_unit_of_work() as unit:
            yield unit.session(config)

    # Engines.

    def get_engine(self, key: Database | str | None = None) -> Engine | AsyncEngine:
        """The engine of a SQLAlchemy database; an async one belongs to the running event loop."""
        config = self._registry.get(key)
        return self.get_sync_config(key).get_engine() if config.blocking else self.get_async_database(key).get_engine()

    def get_async_engine(self, key: Database | str | None = None) -> AsyncEngine:
        """The engine of an async SQLAlchemy database, for the running event loop."""
        return self.get_async_database(key).get_engine()

    def get_sync_engine(self, key: Database | str | None = None) -> Engine:
        """The engine of a sync SQLAlchemy database."""
        return self.get_sync_config(key).get_engine()


class Extension(Configs):
    """Sessions by key, of requests and outside of them; see `Configs`."""

    how_to_gate = "pass app= to Transept(...), or call init_app(app) before the app starts"

    @asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[None]:
        """Start the databases, and stop them at the end: for a lifespan of your own. Does nothing twice."""
        async with running(list(self._registry), LOOP):
            yield

    # Sessions of a request.

    @overload
    def get_session(self, request: HasScope, key: Gives[S]) -> S: ...
    @overload
    def get_session(self, request: HasScope, key: Database | str | None = None) -> Any: ...
    def get_session(self, request: HasScope, key: Any = None) -> Any:
        """The request's session of this database, the same object each time; in Starlette also on ``request.state``.

        It takes a connection with its first statement, is settled before the response is passed on, and is over when
        the response is complete; in a background task, this gives the session of a fresh unit of work.

        Raises:
            OutsideScope: the request is over, or the app has no gate.
            ImproperConfigurationError: no database has this key.
        """
        return self._session(request, self._registry.get(key))

    @overload
    def get_connection(self, request: HasScope, key: Connects[S]) -> S: ...
    @overload
    def get_connection(self, request: HasScope, key: Database | str | None = None) -> Any: ...
    def get_connection(self, request: HasScope, key: Any = None) -> Any:
        """The driver's connection of a raw database in this request, a handle that connects at first use.

        It has `commit`, `rollback`, `cursor` and `execute` on each driver, and passes all else on. Settled with the
        request's session, as a part of the same transaction.

        Raises:
            UsageError: the database is a SQLAlchemy one.
            OutsideScope: the request is over, or the app has no gate.
            ImproperConfigurationError: no database has this key.
        """
        return unit_of(request, self.how_to_gate).connection(self._registry.get(key))

    def get_async_session(self, request: HasScope, key: Database | str | None = None) -> AsyncSession:
        """As `get_session`, for an async SQLAlchemy database."""
        session: AsyncSession = self._session(request, self.get_async_database(key))
        return session

    def get_sync_session(self, request: HasScope, key: Database | str | None = None) -> Session:
        """As `get_session`, for a sync SQLAlchemy database."""
        session: Session = self._session(request, self.get_sync_config(key))
        return session

    def _session(self, request: HasScope, database: Database) -> Any:
        return unit_of(request, self.how_to_gate).session(database)


def unit_of(request: HasScope, how_to_gate: str = Extension.how_to_gate) -> Unit:
    """The unit of work of this request, made now if it has none yet."""
    return unit_of_scope(request.scope, how_to_gate)


def unit_of_scope(scope: Any, how_to_gate: str) -> Unit:
    """The unit of work of the request with this ASGI scope."""
    units = unit_scope(scope)
    if units is None:
        raise OutsideScope(f"no gate stands around this request: {how_to_gate}.")
    return units.open()


class Home:
    """The state of one app, on which the pools of drivers lie as soon as they are made.

    Not those that other apps make on event loops of theirs. Databases hold it weakly.
    """

    def __init__(self, state: Any) -> None:
        self._state = state
        self._loop: ref[asyncio.AbstractEventLoop] | None = None

    def runs_here(self) -> None:
        """The app has started on the running event loop."""
        self._loop = ref(asyncio.get_running_loop())

    def _knows(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        """Whether what is made on this loop is this app's; a blocking database is started in a thread, without one."""
        return loop is None or self._loop is None or self._loop() is loop

    def show_pools(self, databases: Iterable[Database]) -> None:
        """Show those of these databases, now and whenever they are made."""
        here = ref(self)

        def show(key: str, pool: Any) -> None:
            home = here()
            if home is not None and home._knows(asyncio._get_running_loop()):
                setattr(home._state, key, pool)

        for database in databases:
            if isinstance(database, Pooled):
                database.when_pooled(partial(show, database.pool_key))


def expected(colour: str, config: Any) -> ImproperConfigurationError:
    """The error for a database of another kind than was asked for."""
    other = "a sync config" if config.blocking else "an async config"
    article = "an async" if colour == "async" else "a sync"
    from_alchemy = any(kind.__module__.startswith("transept.alchemy") for kind in type(config).__mro__)
    found = other if from_alchemy else type(config).__name__
    return ImproperConfigurationError(
        f"Expected {article} config, but got {found} (database {config.key!r}): use get_session() and get_config() "
        "for either kind."
    )
