"""SQLAlchemy databases as users configure them; each config object is a database."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar, Generic, TypeVar
from weakref import finalize

from sqlalchemy import MetaData, create_engine
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.pool import Pool
from sqlalchemy.util import await_only

from transept._forks import begins_anew
from transept._loops import PerLoop
from transept._portal import PORTAL
from transept.alchemy.engine import is_memory, keeper_of, make_engine, shared_memory
from transept.alchemy.handle import AsyncHandle, BlockingHandle
from transept.alchemy.session import Seat, new_guarded
from transept.alchemy.timestamps import touching, touching_class
from transept.config import (
    AsyncSessionConfig,
    DatabaseSettings,
    Empty,
    EngineConfig,
    SyncSessionConfig,
    checked,
    configuration,
    given,
)
from transept.errors import ImproperConfigurationError
from transept.turn import TaskTurn, ThreadTurn
from transept.unit import Hooks

__all__ = ["SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"]

E = TypeVar("E", Engine, AsyncEngine)
S = TypeVar("S", Session, AsyncSession)


@configuration
class _SQLAlchemyConfig(DatabaseSettings, Generic[E, S]):
    connection_string: str | URL | None = None
    engine_instance: E | None = None
    engine_config: EngineConfig = field(default_factory=EngineConfig)
    session_maker: Callable[[], S] | None = None
    create_all: bool = False
    metadata: MetaData | None = None
    enable_touch_updated_timestamp_listener: bool = True
    blocking: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_settings()
        self._url = self._checked_url()
        self._is_sqlite = self._url is not None and self._url.get_backend_name() == "sqlite"
        self._created = False
        self._keeper: finalize[Any, Any] | None = None

    def _check_settings(self) -> None:
        owner = type(self).__name__
        checked("metadata", self.metadata, MetaData, owner, optional=True)
        for setting in ("create_all", "enable_touch_updated_timestamp_listener"):
            checked(setting, getattr(self, setting), bool, owner)
        checked("engine_config", self.engine_config, EngineConfig, owner)
        checked("session_config", getattr(self, "session_config"), SyncSessionConfig, owner)  # noqa: B009 - of subclasses
        checked("engine_instance", self.engine_instance, Engine if self.blocking else AsyncEngine, owner, optional=True)
        for setting in ("session_maker", "session_maker_class", "create_engine_callable"):
            made_by = getattr(self, setting)
            if not callable(made_by) and not (setting == "session_maker" and made_by is None):
                raise ImproperConfigurationError(f"{owner}: {setting}={made_by!r}: a callable is needed.")
        options = self.engine_config.engine_options()
        if options and (self.engine_instance is not None or self.session_maker is not None):
            raise ImproperConfigurationError(
                f"{owner}: engine_config has no effect on your own engine or session_maker: leave out "
                f"{', '.join(sorted(options))}, or let the engine be made here."
            )
        levels = (options.get("isolation_level"), (options.get("execution_options") or {}).get("isolation_level"))
        if "AUTOCOMMIT" in levels:
            raise ImproperConfigurationError(
                f"{owner}: engine_config has isolation_level='AUTOCOMMIT', where each statement is kept "
                "at once and nothing can be rolled back: leave it out; commit_mode= says which responses commit."
            )

    def _checked_url(self) -> URL | None:
        """The URL of the engine to make; None where the user brings an engine or a maker."""
        url = self.engine_config.url
        if self.connection_string is not None and url is not Empty:
            raise ImproperConfigurationError(
                "Only one of 'connection_string' or 'engine_config=EngineConfig(url=...)' can be provided."
            )
        if self.connection_string is None and url is not Empty:
            given_url: str | URL | None = url
        else:
            given_url = self.connection_string
        for setting, brought in (("engine_instance", self.engine_instance), ("session_maker", self.session_maker)):
            if given_url is not None and brought is not None:
                raise ImproperConfigurationError(f"Only one of 'connection_string' or {setting!r} can be provided.")
        if given_url is None:
            if self.engine_instance is None and self.session_maker is None:
                raise ImproperConfigurationError(
                    "One of 'connection_string', 'engine_config=EngineConfig(url=...)', 'engine_instance' or "
                    "'session_maker' must be provided."
                )
            return None
        return self._url_of_this_colour(given_url)

    def _url_of_this_colour(self, given_url: str | URL) -> URL:
        owner = type(self).__name__
        try:
            url = make_url(given_url)
            named = url.get_dialect()
            dialect = named if self.blocking else named.get_async_dialect_cls(url)
        except (ArgumentError, NoSuchModuleError) as error:
            shown = given_url.render_as_string() if isinstance(given_url, URL) else _without_password(given_url)
            raise ImproperConfigurationError(
                f"{owner}: connection_string={shown!r} is not a database URL: {error}"
            ) from error
        if dialect.is_async is self.blocking:
            colour, other = (
                ("an async", "SQLAlchemyAsyncConfig") if self.blocking else ("a sync", "SQLAlchemySyncConfig")
            )
            raise ImproperConfigurationError(
                f"{owner}: connection_string={url.render_as_string()!r} names {colour} driver, {dialect.driver!r}: "
                f"use {other}, or a driver such as {_driver_for(url, self.blocking)!r}."
            )
        return shared_memory(url) if is_memory(url) else url

    def _metadata(self) -> MetaData:
        if self.metadata is not None:
            return self.metadata
        found = {base.metadata for base in _declarative_bases() if base.metadata.tables}
        if len(found) == 1:
            return found.pop()
        raise ImproperConfigurationError(
            f"{type(self).__name__}: create_all=True needs metadata=, because there are {len(found)} declarative bases "
            f"with tables: pass metadata=Base.metadata. (database {self.bind_key!r})"
        )

    def _session_options(self, config: SyncSessionConfig, engine: E | None) -> dict[str, Any]:
        options = given(config)
        if "binds" not in options:
            options.setdefault("bind", engine)
        return options

    def _own_engine(self, create: Callable[..., E]) -> E:
        """An in-memory database lives as long as a connection to it: one is held until `stop`."""
        assert self._url is not None
        if self._keeper is None and (keeper := keeper_of(self._url)) is not None:
            self._keeper = finalize(self, keeper.close)
        return make_engine(self._url, self.engine_config.engine_options(), create, blocking=self.blocking)

    def give_up(self, handle: Any) -> Any:
        return handle.give_up()

    def _may_write(self, reads_only: bool) -> bool | None:
        """For how SQLite begins; None where the engine does not listen to it."""
        return not reads_only if self._is_sqlite else None

    def _forget_tables(self) -> None:
        """They are made again at the next start. In a sandbox they stay: its open transaction would be in the way."""
        if self._source is not None:
            return
        self._created = False
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper()


@configuration
class SQLAlchemySyncConfig(_SQLAlchemyConfig[Engine, Session]):
    """A database reached through a blocking SQLAlchemy `Session`.

    Give `connection_string` (or ``engine_config=EngineConfig(url=...)``), or bring your own `engine_instance` or
    `session_maker`, which are used as they are and never disposed.

    Args:
        connection_string: the database URL; ``sqlite://`` is one in-memory database shared by all threads.
        engine_config: every keyword of `create_engine`.
        session_config: every keyword of `sessionmaker`; for sessions of makers that Transept makes.
        session_maker, session_maker_class: a ready maker (any callable that returns a new session), or its class.
        engine_instance, create_engine_callable: a ready engine, or what is called with the URL and the options.
        create_all: create the tables of `metadata` at start-up, or at first use where start-up is not run. Without
            `metadata`, those of the only declarative base.
        enable_touch_updated_timestamp_listener: the time (UTC) is put into the column `updated_at` of each object that
            a flush changes, unless the app or the column sets it; not in sessions of your own maker.
        bind_key: the database's name.
        session_key: the session's name on the request's state; ``"db_session"`` or ``"<bind_key>_session"``.
        commit_mode: ``"manual"``, ``"autocommit"`` (2xx) or ``"autocommit_include_redirect"`` (2xx and 3xx).
        extra_commit_statuses, extra_rollback_statuses: HTTP statuses that win over the mode's range.
        keep_transaction_for_body: let a cursor that is open when the response starts keep its transaction until the
            body is complete. What that transaction wrote is then committed only after the first byte.

    Raises:
        ImproperConfigurationError: an unknown option or mode, a missing or doubled URL, a driver of the other colour.
    """

    session_config: SyncSessionConfig = field(default_factory=SyncSessionConfig)
    session_maker_class: type[sessionmaker[Session]] = sessionmaker
    create_engine_callable: Callable[..., Engine] = create_engine

    blocking: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lock = threading.RLock()
        self._made: tuple[Engine, Callable[[], Session]] | None = None
        self._disposer: finalize[Any, Any] | None = None
        begins_anew(self)

    def get_engine(self) -> Engine:
        """The engine: yours, or one made at the first call, disposed at shutdown, and made anew if asked for again."""
        if self.engine_instance is not None:
            return self.engine_instance
        return _bind_of(self.session_maker, Engine) if self._url is None else self._engine_and_maker()[0]

    def create_session_maker(self) -> Callable[[], Session]:
        """Your maker, or one over the engine. Its sessions are your own: nothing commits or closes them for you."""
        return self.session_maker or self._engine_and_maker()[1]

    def open(self, hooks: Hooks, reads_only: bool) -> BlockingHandle:
        return self.adopt(self.create_session_maker()(), hooks, reads_only)

    def adopt(self, session: Session, hooks: Hooks, reads_only: bool) -> BlockingHandle:
        first_use = self._prepare if self.create_all and not self._created else None
        route = self._route(hooks)
        seat = Seat(
            self.key, ThreadTurn(), hooks, may_write=self._may_write(reads_only), first_use=first_use, route=route
        )
        seat.owner = self
        return BlockingHandle(session, seat)

    async def start(self) -> None:
        self._prepare()

    async def stop(self) -> None:
        with self._lock:
            made, self._made = self._made, None
        try:
            if made is not None and self._disposer is not None:
                self._disposer()
        finally:
            self._forget_tables()

    def _engine_and_maker(self) -> tuple[Engine, Callable[[], Session]]:
        made = self._made
        if made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
                made = self._made
        return made

    def _make(self) -> tuple[Engine, Callable[[], Session]]:
        engine = self.engine_instance
        if engine is None:
            engine = self._own_engine(self.create_engine_callable)
            self._disposer = finalize(self, engine.dispose)
        maker = self.session_maker_class(**self._session_options(self.session_config, engine))
        return engine, touching(maker) if self.enable_touch_updated_timestamp_listener else maker

    def leave_to_the_parent(self) -> Pool | None:
        """In a forked process; see `begins_anew`. The app's own engine is its own affair."""
        self._lock = threading.RLock()
        if self._made is None or self.engine_instance is not None:
            return None
        engine = self._made[0]
        pool = engine.pool
        engine.dispose(close=False)
        return pool

    def _prepare(self) -> None:
        if self.create_all and not self._created:
            with self._lock:
                if not self._created:
                    self._metadata().create_all(self.get_engine())
                    self._created = True


@configuration
class SQLAlchemyAsyncConfig(_SQLAlchemyConfig[AsyncEngine, AsyncSession]):
    """A database reached through an `AsyncSession`. The settings are those of `SQLAlchemySyncConfig`.

    An engine is made for each event loop that uses the database, and disposed when its loop ends, so test clients that
    run each request on a loop of its own work as they are.
    """

    session_config: AsyncSessionConfig = field(default_factory=AsyncSessionConfig)
    session_maker_class: type[async_sessionmaker[AsyncSession]] = async_sessionmaker
    create_engine_callable: Callable[..., AsyncEngine] = create_async_engine

    blocking: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._made = PerLoop(self._make, self._dispose)
        self._creating = PerLoop(asyncio.Lock, _nothing_to_close)

    def get_engine(self) -> AsyncEngine:
        """The running event loop's engine: yours, or one made at the first call and disposed with the loop."""
        if self.engine_instance is not None:
            return self.engine_instance
        return _bind_of(self.session_maker, AsyncEngine) if self._url is None else self._made.get()[0]

    def create_session_maker(self) -> Callable[[], AsyncSession]:
        """Your maker, or one over the engine. Its sessions are your own: nothing commits or closes them for you."""
        return self.session_maker or self._made.get()[1]

    def open(self, hooks: Hooks, reads_only: bool) -> AsyncHandle:
        return self.adopt(new_guarded(self.create_session_maker()), hooks, reads_only)

    def adopt(self, session: AsyncSession, hooks: Hooks, reads_only: bool) -> AsyncHandle:
        first_use = self._prepare_in_greenlet if self.create_all and not self._created else None
        route = self._route(hooks)
        seat = Seat(
            self.key, TaskTurn(), hooks, may_write=self._may_write(reads_only), first_use=first_use, route=route
        )
        seat.owner = self
        return AsyncHandle(session, seat)

    async def start(self) -> None:
        if self.create_all and not self._created:
            async with self._creating.get():
                if not self._created:
                    async with self.get_engine().begin() as connection:
                        await connection.run_sync(self._metadata().create_all)
                    self._created = True

    async def stop(self) -> None:
        try:
            await self._made.close(unless=_still_used)
            await self._creating.close()
        finally:
            self._forget_tables()

    def _prepare_in_greenlet(self) -> None:
        await_only(self.start())

    def _make(self) -> tuple[AsyncEngine, Callable[[], AsyncSession]]:
        engine = self.engine_instance
        if engine is None:
            engine = self._own_engine(self.create_engine_callable)
        options = self._session_options(self.session_config, engine)
        if self.enable_touch_updated_timestamp_listener:
            made_here = options.get("class_", AsyncSession).sync_session_class
            options["sync_session_class"] = touching_class(options.get("sync_session_class", made_here))
        return engine, self.session_maker_class(**options)

    async def _dispose(self, made: tuple[AsyncEngine, Any]) -> None:
        if made[0] is not self.engine_instance:
            await made[0].dispose()


def _still_used(made: tuple[AsyncEngine, Any]) -> bool:
    """Whether a thread still has a connection of the background loop: it would lose it with the loop."""
    checked_out: Callable[[], int] | None = getattr(made[0].pool, "checkedout", None)
    return PORTAL.is_here() and checked_out is not None and checked_out() > 0


async def _nothing_to_close(lock: asyncio.Lock) -> None:
    """A lock holds no resource."""


def _bind_of(maker: Any, kind: type[E]) -> E:
    bind = getattr(maker, "kw", {}).get("bind")
    if not isinstance(bind, kind):
        raise ImproperConfigurationError(
            f"session_maker={maker!r} does not tell its engine: pass engine_instance=, too, to be asked for it here."
        )
    return bind


def _declarative_bases() -> set[type[DeclarativeBase]]:
    return set(DeclarativeBase.__subclasses__())


def _without_password(text: object) -> str:
    return re.sub(r"//([^:/@]*):[^@]*@", r"//\1:***@", str(text))


def _driver_for(url: URL, blocking: bool) -> str:
    drivers = {
        "sqlite": ("pysqlite", "aiosqlite"),
        "postgresql": ("psycopg", "asyncpg"),
        "mysql": ("pymysql", "asyncmy"),
        "mariadb": ("pymysql", "asyncmy"),
    }
    backend = url.get_backend_name()
    pair = drivers.get(backend, ("a sync one", "an async one"))
    return f"{backend}+{pair[0] if blocking else pair[1]}"
