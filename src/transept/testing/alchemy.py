"""The sandbox's connection for SQLAlchemy: engines whose pool hands out parts of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, Pool, PoolProxiedConnection, SingletonThreadPool, StaticPool
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from transept._bridge import run_now
from transept.testing.dbapi import JoinedConnection
from transept.testing.home import Home, finished
from transept.testing.outer import Outer, explain
from transept.testing.pools import PoolWatch
from transept.testing.shared import Shared, Source
from transept.testing.turnstile import User

__all__ = ["EngineSource", "SharedConnection"]

T = TypeVar("T")


class SandboxEngine(OptionEngine):
    """The app's engine, with its events and its dialect, whose connections are parts of the sandbox's."""

    def __init__(self, engine: Engine, parts: Pool, dialect: Dialect) -> None:
        self._parts = parts
        super().__init__(engine, {})
        self.dialect = dialect  # which has met the server; an engine that was made for this event loop only has not

    @property
    def pool(self) -> Pool:  # type: ignore[override]
        return self._parts


class EngineSource(Source):
    """Gives each session the engines to connect with while the sandbox lasts."""

    def __init__(self, database: Any, home: Home) -> None:
        super().__init__(database.key)
        self._home = home
        self._shared: dict[str, SharedConnection] = {}
        self._opening = threading.Lock()
        self._pools = PoolWatch(self.database)

    def __call__(self, hooks: Any) -> Route:
        return Route(self, hooks)

    def connections(self) -> list[SharedConnection]:
        return list(self._shared.values())

    def end(self, patience: float) -> tuple[list[str], list[Exception]]:
        leaks, failures = super().end(patience)
        return [*leaks, *self._pools.end()], failures

    def shared(self, engine: Engine) -> SharedConnection:
        """The connection to this engine's server: one, however many engines lead there, as each event loop has one."""
        key = engine.url.render_as_string(hide_password=False)
        with self._opening:
            self._pools.watch(engine)
            shared = self._shared.get(key)
            if shared is None:
                self._shared[key] = shared = SharedConnection(self.database, self._home, engine)
                if self.patience is not None:
                    shared.begin(self.patience)
            return shared


class Route:
    """The engines of one session."""

    def __init__(self, source: EngineSource, hooks: Any) -> None:
        self._source = source
        self._hooks = hooks
        self._engines: dict[SharedConnection, SandboxEngine] = {}

    def __call__(self, engine: Engine) -> Engine:
        if isinstance(engine, SandboxEngine):
            return engine
        shared = self._source.shared(engine)
        if shared not in self._engines:
            parts = NullPool(self._joiner(shared), dialect=shared.dialect)
            self._engines[shared] = SandboxEngine(engine, parts, shared.dialect)
        return self._engines[shared]

    def _joiner(self, shared: SharedConnection) -> Any:
        """What the pool calls with its entry for a new connection."""

        def join(record: ConnectionPoolEntry) -> JoinedConnection:
            return shared.join(self._hooks, record)

        return join


class SharedConnection(Shared):
    """A DBAPI connection, with SQLAlchemy's pool entry around it. Its I/O is blocking code, in a greenlet if async."""

    def __init__(self, database: str, home: Home, engine: Engine) -> None:
        super().__init__(database, home if engine.dialect.is_async else None)
        self.dialect = engine.dialect
        self.raw: Any = None
        self._engine = engine
        self._lent: PoolProxiedConnection | None = None
        in_memory = isinstance(engine.pool, (StaticPool, SingletonThreadPool))
        self._only_one = in_memory and engine.dialect.name == "sqlite"

    # In the app's threads and tasks.

    def join(self, hooks: Any, record: ConnectionPoolEntry) -> JoinedConnection:
        """Wait for the turn, and take it."""
        turnstile = self.turnstile
        if turnstile is None:
            raise self.over()
        user = User(hooks)
        if self.home is None:
            turnstile.take(user)
        else:
            await_only(turnstile.take_async(user))
        try:
            if self.outer is None:
                self.call(self._begin_outer)
            made = JoinedConnection(self, user, record)
            self.joined(user, made)
        except BaseException:
            turnstile.give_back(user)
            raise
        return made

    def call(self, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        """Call this where the connection lives; what it raises is raised here."""
        if self.home is None or self.home.is_here():
            return function(*arguments, **keywords)

        async def work() -> T:
            return await greenlet_spawn(function, *arguments, **keywords)

        if in_greenlet():
            return await_only(self.home.run(self.one_by_one(work)))
        return self.home.submit(self.one_by_one(work)).result()

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Await this where the connection lives."""
        return await (work() if self.home is None else self.home.run(self.one_by_one(work)))

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        if self.home is None:
            return finished(lambda: run_now(work()))
        return self.home.submit(self.one_by_one(lambda: greenlet_spawn(lambda: run_now(work()))))

    # Where the connection lives.

    def begin_again(self) -> bool:
        """The app says BEGIN: SQLite's transaction may have been dropped, and what follows would be kept at once."""
        driver = getattr(self.raw, "driver_connection", self.raw)
        if self.dialect.name != "sqlite" or driver.in_transaction:
            return False
        self.part_of().lost = "an error ended it"
        run_now(self._sql("BEGIN"))
        return True

    def _begin_outer(self) -> None:
        if self.outer is not None:  # begun for one that was cancelled meanwhile
            return
        if self.raw is None:
            self._connect()
        outer = Outer(self.database, self.dialect.name, self._sql)
        try:
            if self.dialect.name == "sqlite":
                run_now(self._sql("BEGIN IMMEDIATE"))
            run_now(outer.begun())
        except Exception as error:
            run_now(self.disconnect())
            explain(self.database, error)
            raise
        self.outer = outer

    def _connect(self) -> None:
        """A new connection, made as the engine makes them; but the only one there is, if the database is in it."""
        pool = self._engine.pool if self._only_one else self._engine.pool.recreate()
        with PoolWatch.connecting():
            self._lent = pool.connect()
        self.raw = self._lent.dbapi_connection

    async def roll_back(self) -> None:
        self.raw.rollback()

    async def disconnect(self) -> None:
        lent, self._lent, raw, self.raw = self._lent, None, self.raw, None
        if lent is not None and self._only_one:
            lent.close()
        elif lent is not None:
            lent.detach()
            raw.close()

    async def _sql(self, sql: str) -> Sequence[Sequence[Any]]:
        cursor = self.raw.cursor()
        try:
            cursor.execute(sql)
            rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor.description else ()
        finally:
            cursor.close()
        return rows


class BorrowedSource(EngineSource):
    """Gives each session what joins the open transaction of one that the test has, on the loop that runs."""

    def __init__(self, database: Any, connection: Connection, home: Home) -> None:
        super().__init__(database, home)
        self._borrowed = BorrowedConnection(database.key, home, connection)

    def connections(self) -> list[SharedConnection]:
        return [self._borrowed]

    def shared(self, engine: Engine) -> SharedConnection:
        return self._borrowed


class BorrowedConnection(SharedConnection):
    """Whoever has the connection rolls its transaction back, and closes it."""

    def __init__(self, database: str, home: Home, connection: Connection) -> None:
        super().__init__(database, home, connection.engine)
        self.raw = connection.connection.dbapi_connection

    def _begin_outer(self) -> None:
        outer = Outer(self.database, self.dialect.name, self._sql)
        run_now(outer.begun())
        self.outer = outer

    async def roll_back(self) -> None:
        """The test does."""

    async def disconnect(self) -> None:
        """The test does."""
