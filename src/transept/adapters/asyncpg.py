"""PostgreSQL through asyncpg."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, ClassVar

try:
    import asyncpg
except ImportError as error:
    raise ImportError("transept.adapters.asyncpg needs asyncpg: pip install 'transept[asyncpg]'") from error

from transept._loops import PerLoop
from transept.config import checked, configuration
from transept.errors import CommitFailed, ImproperConfigurationError, PoolTimeout
from transept.sql.faults import Fault, of_asyncpg
from transept.sql.holders import Holders
from transept.sql.kinds import Kind, kind_of
from transept.sql.postgres import (
    DECLARED,
    NATIVES,
    READ_ONLY,
    WHO_AND_TEMP,
    Savings,
    Session,
    SessionLink,
    decode_json,
    encode_json,
    pool_sizes,
    port_checked,
    url_without_driver,
    vouched,
)
from transept.sql.result import KeptCursor, Result
from transept.sql.settings import AsyncSettings
from transept.sql.statement import Notation
from transept.sql.values import ASYNCPG_TYPES, Table

__all__ = ["AsyncpgConfig"]

ROLLBACK_SECONDS = 5
OURS: ContextVar[bool] = ContextVar("transept_asyncpg_acquires", default=False)
ASKED_FOR: ContextVar[bool] = ContextVar("transept_asyncpg_is_closed", default=False)


@configuration
class AsyncpgConfig(AsyncSettings):
    """A PostgreSQL database through asyncpg and its own pool; the settings of `DriverSettings`, and two more.

    Args:
        pool_config: the keywords of `asyncpg.create_pool`, such as ``{"dsn": "postgresql://localhost/app"}``.
        bare_reads: run a lone read without BEGIN and COMMIT, where the server proves that it is one. Connections are
            read-only by default for that. Switch it off behind a pooler such as PgBouncer.
        skip_reset: give a connection back without resetting its session, where nothing can have changed it.

    The pool is made at first use, or at start-up, one for each event loop, and closed at shutdown or with its loop.
    """

    bare_reads: bool = True
    skip_reset: bool = True

    dialect: ClassVar[str] = "postgresql"
    notation: ClassVar[Notation] = Notation("postgresql", own="numeric", out="numeric")
    natives: ClassVar[frozenset[type]] = NATIVES
    adapts: ClassVar[Table] = ASYNCPG_TYPES
    driver_connection: ClassVar[type] = asyncpg.Connection

    def __post_init__(self) -> None:
        super().__post_init__()
        checked("bare_reads", self.bare_reads, bool, "AsyncpgConfig")
        checked("skip_reset", self.skip_reset, bool, "AsyncpgConfig")
        self._options = connect_options("AsyncpgConfig", self.pool_config)
        self._pools = PerLoop(lambda: LoopPool(self), LoopPool.close)

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        return frozenset(
            name for call in (asyncpg.create_pool, asyncpg.connect) for name in inspect.signature(call).parameters
        ) - {"connect_kwargs"}

    def fault_of(self, error: BaseException) -> Fault | None:
        return of_asyncpg(error)

    async def link(self, holder: str) -> AsyncpgLink:
        return await self._pools.get().link(holder)

    async def _warm(self, connections: int) -> None:
        await self._pools.get().warm(connections)

    async def stop(self) -> None:
        asked = ASKED_FOR.set(True)
        try:
            await self._pools.close()
        finally:
            ASKED_FOR.reset(asked)

    async def provide_pool(self) -> Any:
        """asyncpg's pool of the running event loop, to be used as any other."""
        return await self._pools.get().opened()

    async def close_pool(self) -> None:
        """Close it; the next use makes another."""
        await self.stop()


def connect_options(owner: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What asyncpg takes, of a pool_config; what can be known to be wrong is refused."""
    options = dict(given)
    options["min_size"], options["max_size"] = pool_sizes(owner, options)
    port_checked(owner, options.get("port"))
    if options.get("dsn") is not None:
        dsn = options["dsn"] = url_without_driver(owner, "dsn", options["dsn"])
        if not dsn.startswith(("postgresql://", "postgres://")):
            # not all of it: there may be a password
            shown = f"{dsn.split('://', 1)[0]}://..." if "://" in dsn else "..."
            raise ImproperConfigurationError(
                f"{owner}: pool_config['dsn']={shown!r}: a URL is needed, such as "
                "'postgresql://user:password@localhost/app'."
            )
    return options


class LoopPool:
    """The pool of one event loop, opened by the first that needs it."""

    def __init__(self, config: AsyncpgConfig) -> None:
        options = dict(config._options)
        self._config = config
        options["min_size"] = 0  # `warm` makes them
        self._users_init = options.pop("init", None)
        self._users_setup = options.pop("setup", None)
        self._users_reset = options.pop("reset", None)
        # the app's own choice is left alone
        self._bare_reads = (
            config.bare_reads and READ_ONLY not in f"{options.get('dsn')} {options.get('server_settings')}"
        )
        if self._bare_reads:
            options["server_settings"] = {READ_ONLY: "on", **(options.get("server_settings") or {})}
        self._options = options
        self._opening = asyncio.Lock()
        self._pool: Any = None
        self._sessions: dict[int, Session] = {}
        self.savings = Savings(bare_reads=self._bare_reads, skip_reset=config.skip_reset)
        self.holders = Holders()
        self.names: dict[str, tuple[str, ...]] = {}

    async def opened(self) -> Any:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(
                        init=self._init, setup=self._setup, reset=self._reset, **self._options
                    )
                    self._config._announce(self._pool)
        return self._pool

    async def warm(self, connections: int) -> None:
        pool = await self.opened()
        seconds = self._config.pool_timeout
        acquires = [pool.acquire(timeout=seconds) for _ in range(connections)]
        taken = await asyncio.gather(*acquires, return_exceptions=True)
        failures = [one for one in taken if isinstance(one, BaseException)]
        for one in taken:
            if not isinstance(one, BaseException):
                await pool.release(one)
        if failures:
            raise failures[0]

    async def link(self, holder: str) -> AsyncpgLink:
        return await vouched(self._taken, holder, fault_of=of_asyncpg, key=self._config.key)

    async def _taken(self, holder: str) -> AsyncpgLink:
        pool = self._pool or await self.opened()
        ours = OURS.set(True)
        try:
            if pool.get_idle_size():
                connection = await pool.acquire()
            else:
                connection = await pool.acquire(timeout=self._config.pool_timeout)
        except TimeoutError as error:
            if pool.get_size() < pool.get_max_size():
                raise
            raise PoolTimeout(self._config.key, self._config.pool_timeout, self.holders.since()) from error
        finally:
            OURS.reset(ours)
        session = self._sessions.get(connection.get_server_pid())
        if session is None:  # it died between the pool and here
            session = Session(self.savings)
        self.holders.took(connection, holder)
        fresh, session.used = not session.used, True
        return AsyncpgLink(self, connection, session, fresh=fresh)

    async def release(self, connection: Any) -> None:
        """As the pool's own `release`, without the task and the shield that it makes of what it does here.

        Nobody who is cancelled waits here: a transaction is settled behind a shield, and there is nothing to wait for
        after a lone read.
        """
        self.holders.gave_back(connection)
        if connection._con is None:  # it was lost: the pool may have given its place to somebody else
            return
        holder = getattr(connection, "_holder", None)
        await (self._pool.release(connection) if holder is None else holder.release(None))

    async def drop(self, connection: Any) -> None:
        self.holders.gave_back(connection)
        with suppress(asyncpg.InterfaceError):  # the pool has let go of it already: it does when one is lost
            connection.terminate()
        await self._pool.release(connection)

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if not ASKED_FOR.get() and pool.get_idle_size() < pool.get_size():
            pool.terminate()  # its loop ends: nobody can give a connection back any more
            return
        try:
            async with asyncio.timeout(self._config.pool_timeout):
                await pool.close()
        except TimeoutError as error:
            pool.terminate()
            held = ", ".join(f"{who} (for {since:.1f} s)" for who, since in self.holders.since())
            raise TimeoutError(
                f"database {self._config.key!r}: connections were still in use when its pool was closed, and have been "
                f"cut: {held or 'nobody knows by whom'}."
            ) from error

    async def _init(self, connection: Any) -> None:
        number = connection.get_server_pid()
        session = self._sessions[number] = Session(self.savings)

        def forget(_: Any) -> None:
            session.needs_reset()  # a pool that closes a connection does not reset it before
            if self._sessions.get(number) is session:  # the server gives numbers again
                del self._sessions[number]

        connection.add_termination_listener(forget)
        for name in ("json", "jsonb"):
            await connection.set_type_codec(name, schema="pg_catalog", encoder=encode_json, decoder=decode_json)
        if self._users_init is not None:
            await self._users_init(connection)
            session.touched = True  # with asyncpg, what is SET there lasts until the first reset

    async def _setup(self, connection: Any) -> None:
        """For those who use the pool past us, connections are as they would be without us."""
        if not OURS.get():
            if self._bare_reads:
                await connection.execute(f"SET {READ_ONLY} = off")
            self._sessions[connection.get_server_pid()].touch()
        if self._users_setup is not None:
            await self._users_setup(connection)

    async def _reset(self, connection: Any) -> None:
        session = self._sessions.get(connection.get_server_pid())
        if session is None or session.needs_reset() or self._users_setup is not None:
            query = connection.get_reset_query()
            await connection.execute(f"{query}\n{WHO_AND_TEMP}" if query else "")
        if self._users_reset is not None:
            await self._users_reset(connection)


class AsyncpgLink(SessionLink):
    """One asyncpg connection for one transaction, begun and ended in SQL, so that COMMIT's own answer is seen."""

    __slots__ = ("_connection", "_cursors", "_in_step", "_pool", "fresh")

    def __init__(self, pool: LoopPool, connection: Any, session: Session, *, fresh: bool) -> None:
        self._pool = pool
        self._connection = connection
        self._cursors = 0
        self._in_step = True
        self.session = session
        self.fresh = fresh

    @property
    def connection(self) -> Any:
        self.session.touch()
        return self._connection

    async def ask(self, sql: str) -> Any:
        try:
            return await self._connection.fetchval(sql)
        except BaseException as error:
            self._failed(error)
            raise

    async def begin(self, may_write: bool) -> None:
        await self._get_in_step()
        await self._connection.execute(self.session.begin)

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result:
        self.session.ran(kind)
        try:
            if kind.returns_rows:
                rows = await self._connection.fetch(sql, *values)
                names = tuple(rows[0].keys()) if rows else await self._names(sql)
                return Result(names, rows, len(rows), None, NATIVES)
            tag = await self._connection.execute(sql, *values)
            return Result((), (), _affected(tag), None, NATIVES)
        except BaseException as error:
            self._failed(error)
            raise

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        self.session.ran(kind_of(sql, "postgresql"))
        await self._connection.executemany(sql, sets)
        return -1

    async def run_script(self, script: str) -> None:
        self.session.touch()
        await self._connection.execute(script)

    async def cursor(self, sql: str, values: Sequence[Any]) -> AsyncpgCursor | KeptCursor:
        kind = kind_of(sql, "postgresql")
        if kind.verb not in DECLARED:
            return KeptCursor(await self.run(sql, values, kind))
        self.session.ran(kind)
        self._cursors += 1
        name = f"transept_stream_{self._cursors}"
        await self._connection.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {sql}", *values)
        return AsyncpgCursor(self._connection, name)

    def still_in_transaction(self) -> bool:
        return not is_lost(self._connection) and bool(self._connection.is_in_transaction())

    async def gone(self) -> str | None:
        try:
            await self._connection.execute("SELECT 1")
        except (asyncpg.PostgresError, asyncpg.InterfaceError):
            return "an earlier error aborted the transaction"
        return None

    async def commit(self) -> None:
        if not is_lost(self._connection) and not self._connection.is_in_transaction():
            raise CommitFailed(self._pool._config.key, "the transaction had ended before", advice="")
        answer = await self._connection.execute("COMMIT")
        if answer != "COMMIT":
            raise CommitFailed(
                self._pool._config.key, f"PostgreSQL answered COMMIT with {answer}: an earlier error aborted it"
            )

    async def rollback(self) -> None:
        if is_lost(self._connection) or not self._connection.is_in_transaction():
            return
        try:
            async with asyncio.timeout(ROLLBACK_SECONDS):
                await self._connection.execute("ROLLBACK")
        except TimeoutError:  # it waits for a cancelled statement, of which nothing is heard
            self._connection.terminate()
        except Exception as error:
            fault = of_asyncpg(error)
            if fault is None or not fault.lost:  # a transaction ends with its connection
                raise

    async def release(self) -> None:
        try:
            await self._get_in_step()
        except BaseException:
            await self.drop()
            raise
        await self._pool.release(self._connection)

    async def drop(self) -> None:
        self.session.needs_reset()  # it may have changed the database's code, for all that is known
        await self._pool.drop(self._connection)

    def _failed(self, error: BaseException) -> None:
        """Take note of what failed on this side.

        asyncpg prepares without a Sync. Where values cannot be encoded, or time is up, none follows, and outside of a
        transaction the server is left in one that nobody began.
        """
        if getattr(error, "severity_en", None) is None:  # which the server always says
            self._in_step = False

    async def _get_in_step(self) -> None:
        if not self._in_step and not is_lost(self._connection):
            await self._connection.execute("SELECT 1")
            self._in_step = True

    async def _names(self, sql: str) -> tuple[str, ...]:
        """The columns of a statement that gave no rows, asked for once."""
        names = self._pool.names.get(sql)
        if names is None:
            statement = await self._connection.prepare(sql)
            names = tuple(attribute.name for attribute in statement.get_attributes())
            if not self._connection.is_in_transaction():
                await self._connection.execute("SELECT 1")  # prepare() sends no Sync: the server is in a transaction
            if len(self._pool.names) < 1000:
                self._pool.names[sql] = names
        return names


class AsyncpgCursor:
    """A cursor of the server. asyncpg's own need a transaction of asyncpg's own."""

    def __init__(self, connection: Any, name: str) -> None:
        self._connection = connection
        self._name = name
        self._statement: Any = None
        self._count = 0
        self.column_names: tuple[str, ...] = ()

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        if self._count != count:  # past asyncpg's cache: another cursor of this name may have other columns
            self._statement = await self._connection.prepare(f"FETCH FORWARD {count} FROM {self._name}")
            self._count = count
            self.column_names = tuple(attribute.name for attribute in self._statement.get_attributes())
        rows: Sequence[Sequence[Any]] = await self._statement.fetch()
        return rows

    async def close(self) -> None:
        """It has ended with the transaction, where that has failed."""
        if not is_lost(self._connection) and self._connection.is_in_transaction():
            with suppress(asyncpg.PostgresError):
                await self._connection.execute(f"CLOSE {self._name}")


def is_lost(connection: Any) -> bool:
    return connection._con is None or connection.is_closed()


def _affected(tag: str | None) -> int:
    """The count in a command tag such as ``INSERT 0 3``."""
    last = (tag or "").rsplit(" ", 1)[-1]
    return int(last) if last.isdigit() else 0
