"""The pools of psycopg_pool, written once for both colours.

A call of the driver is awaited in one colour and done in the other; all else is the same.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.json import set_json_loads

from transept._bridge import run_now
from transept._forks import begins_anew
from transept.adapters._psycopg_link import PsycopgLink
from transept.errors import DatabaseUnavailable, PoolBusyOnLoop, PoolTimeout, SQLError
from transept.sql.faults import of_psycopg, sql_error
from transept.sql.holders import Holders
from transept.sql.postgres import READ_ONLY, RESET, Savings, Session, decode_json, vouched
from transept.sql.settings import DriverSettings
from transept.turn import on_loop

__all__ = ["AWAITED", "BLOCKING", "Colour", "Pool"]

PAST_US = "a user of the driver's pool"
WRITABLE = f"SET {READ_ONLY} = off"

logger = logging.getLogger("transept")


class Colour(NamedTuple):
    """What is awaited in one colour and done in the other."""

    done: Callable[[Any], Awaitable[Any]]
    pool: type[BlockingPool] | type[AwaitedPool]
    cursor: type[psycopg.RawCursor[Any]] | type[psycopg.AsyncRawCursor[Any]]


class AwaitedPool(psycopg_pool.AsyncConnectionPool[Any]):
    """psycopg_pool's, which hands out connections as they are without Transept; Transept itself uses `taken`."""

    def __init__(self, owner: Pool, **arguments: Any) -> None:
        self._owner = owner
        super().__init__(**arguments)

    taken = psycopg_pool.AsyncConnectionPool.getconn
    given_back = psycopg_pool.AsyncConnectionPool.putconn

    async def getconn(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as there
        return await self._owner.lend(await super().getconn(timeout))

    async def putconn(self, conn: Any) -> None:
        await self._owner.take_back(conn)
        await super().putconn(conn)

    async def reconnect_failed(self) -> None:
        await self._give_up()
        await super().reconnect_failed()

    async def _connect(self, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as there
        try:
            connection = await super()._connect(timeout)
        except Exception as error:
            self._owner.unreachable = error
            await self._give_up()
            raise
        self._owner.unreachable = None
        return connection

    async def _give_up(self) -> None:
        async with self._lock:
            waiting = self._owner.without_hope(self._waiting)
        for one, error in waiting:
            await one.fail(error)


class BlockingPool(psycopg_pool.ConnectionPool[Any]):
    """The blocking twin of `AwaitedPool`."""

    def __init__(self, owner: Pool, **arguments: Any) -> None:
        self._owner = owner
        super().__init__(**arguments)

    taken = psycopg_pool.ConnectionPool.getconn
    given_back = psycopg_pool.ConnectionPool.putconn

    def getconn(self, timeout: float | None = None) -> Any:
        return run_now(self._owner.lend(super().getconn(timeout)))

    def putconn(self, conn: Any) -> None:
        run_now(self._owner.take_back(conn))
        super().putconn(conn)

    def reconnect_failed(self) -> None:
        self._give_up()
        super().reconnect_failed()

    def _connect(self, timeout: float | None = None) -> Any:
        try:
            connection = super()._connect(timeout)
        except Exception as error:
            self._owner.unreachable = error
            self._give_up()
            raise
        self._owner.unreachable = None
        return connection

    def _give_up(self) -> None:
        with self._lock:
            waiting = self._owner.without_hope(self._waiting)
        for one, error in waiting:
            one.fail(error)


class PooledSession(Session):
    """Also whether the connection has been in use before, and is now."""

    __slots__ = ("out", "used")

    def __init__(self, savings: Savings) -> None:
        super().__init__(savings)
        self.out = False


class Pool:
    """A pool of the driver, opened by the first that needs it."""

    def __init__(
        self, config: DriverSettings, colour: Colour, *, savings: Savings, arguments: Mapping[str, Any]
    ) -> None:
        self._config = config
        self._colour = colour
        self._savings = savings
        self._arguments = arguments
        self._seconds: float = arguments.get("timeout", config.pool_timeout)
        self._users_configure = arguments.get("configure")
        self._opening = threading.Lock()
        self._pool: Any = None
        self._sessions: WeakKeyDictionary[Any, PooledSession] = WeakKeyDictionary()
        self._autocommit = False
        self._holders = Holders()
        self.done = colour.done
        self.unreachable: Exception | None = None
        begins_anew(self)  # also where each loop has its own: a child has none of the loops

    @property
    def key(self) -> str:
        return self._config.key

    @property
    def in_use(self) -> int:
        return len(self._holders)

    def leave_to_the_parent(self) -> Any:
        """In a forked process; see `begins_anew`. Threads that had connections are not there."""
        self._opening = threading.Lock()
        self._holders = Holders()
        pool, self._pool = self._pool, None
        return pool

    async def opened(self) -> Any:
        """The driver's own, open. This waits for nothing, so the lock may be a thread's in both colours."""
        with self._opening:
            if self._pool is None:
                pool = self.made()
                await self.done(pool.open())
                self._pool = pool
                self._config._announce(pool)
            return self._pool

    def made(self) -> Any:
        """The driver's own, not open yet.

        Raises:
            TypeError, ValueError: an argument is wrong.
        """
        arguments = {"name": self.key, "timeout": self._seconds, **self._arguments, "configure": self._configured()}
        return self._colour.pool(self, open=False, **arguments)

    async def warm(self, *, eager: bool) -> None:
        """Open it; its own workers make the connections. With `eager`, wait for one."""
        await self.opened()
        if eager:
            await (await self.link("the start of the app")).release()

    async def close(self) -> None:
        """Connections that are in use are closed when they are given back."""
        with self._opening:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await self.done(pool.close())
        except asyncio.CancelledError:  # the end of a loop cancels the tasks of the pool, which then stops half-way
            for connection, session in list(self._sessions.items()):
                if not session.out:
                    connection.pgconn.finish()
            raise

    async def link(self, holder: str) -> PsycopgLink:
        return await vouched(self._taken, holder, fault_of=of_psycopg, key=self.key)

    async def give_back(self, connection: Any) -> None:
        self._let_go(connection)
        await self.done(connection._pool.given_back(connection))

    async def reset(self, connection: Any) -> None:
        await self.done(self.cursor(connection).execute(RESET, prepare=False))
        if self._users_configure is not None:
            await self.done(self._users_configure(connection))

    def cursor(self, connection: Any) -> Any:
        return self._colour.cursor(connection, row_factory=tuple_row)

    # For those who use the pool past us, connections are as they would be without us.

    async def lend(self, connection: Any) -> Any:
        self._took(connection, PAST_US)
        try:
            if self._savings.bare_reads:
                await self.done(self.cursor(connection).execute(WRITABLE, prepare=False))
            await self.done(connection.set_autocommit(self._autocommit))
        except BaseException:
            connection.pgconn.finish()
            await self.give_back(connection)
            raise
        return connection

    async def take_back(self, connection: Any) -> None:
        session = self._sessions.get(connection)
        if session is None or not session.out:
            return  # the pool refuses it
        self._let_go(connection)
        if connection.pgconn.transaction_status in (TransactionStatus.UNKNOWN, TransactionStatus.ACTIVE):
            return  # the pool closes it
        session.touch()
        try:
            await self.done(connection.rollback())
            await self.done(connection.set_autocommit(True))
            if session.needs_reset():
                await self.reset(connection)
        except Exception:
            logger.warning("a connection to %r could not be reset, and is closed", self.key, exc_info=True)
            connection.pgconn.finish()
        except BaseException:
            connection.pgconn.finish()
            await self.done(connection._pool.given_back(connection))
            raise

    def without_hope(self, waiting: Any) -> list[tuple[Any, Exception]]:
        """Those who wait for a connection, after connecting has failed; nobody if one in use may come back."""
        error = self.unreachable
        if error is None or self.in_use:
            return []
        failed = [(one, error) for one in waiting]
        waiting.clear()
        return failed

    # How.

    async def _taken(self, holder: str) -> PsycopgLink:
        pool = self._pool or await self.opened()
        if self._config.blocking and on_loop() and self._must_wait(pool):
            raise PoolBusyOnLoop(self.in_use)
        try:
            # with 0, it would not even give what is free
            connection = await self.done(pool.taken(max(self._seconds, 0.001)))
        except psycopg_pool.PoolTimeout as error:
            raise self._timed_out(pool) from error
        except psycopg.Error as error:
            fault = of_psycopg(error)
            if fault is None:
                raise
            raise sql_error(fault, error, self.key, None) from error
        session = self._took(connection, holder)
        fresh, session.used = not session.used, True
        return PsycopgLink(self, connection, session, fresh=fresh)

    def _must_wait(self, pool: Any) -> bool:
        """Whether a connection has to be given back first."""
        stats = pool.get_stats()
        return not stats["pool_available"] and self.in_use + stats["requests_waiting"] >= pool.max_size

    def _timed_out(self, pool: Any) -> SQLError:
        if self.in_use >= pool.max_size:
            return PoolTimeout(self.key, self._seconds, self._holders.since())
        why = f": {self.unreachable}" if self.unreachable is not None else ""
        return DatabaseUnavailable(self.key, None, f"no connection could be made within {self._seconds:g} s{why}")

    def _took(self, connection: Any, holder: str) -> PooledSession:
        self._holders.took(connection, holder)
        session = self._sessions[connection]
        session.out = True
        return session

    def _let_go(self, connection: Any) -> None:
        self._holders.gave_back(connection)
        self._sessions[connection].out = False

    def _configured(self) -> Callable[[Any], Any]:
        """The pool's `configure`, in its colour."""
        if self._config.blocking:
            return lambda connection: run_now(self._configure(connection))
        return self._configure

    async def _configure(self, connection: Any) -> None:
        if self._users_configure is not None:
            await self.done(self._users_configure(connection))
        self._autocommit = connection.autocommit
        await self.done(connection.set_autocommit(True))
        set_json_loads(decode_json, connection)
        self._sessions[connection] = PooledSession(self._savings)


def _awaited(call: Any) -> Awaitable[Any]:
    awaitable: Awaitable[Any] = call
    return awaitable


async def _done(result: Any) -> Any:
    return result


AWAITED = Colour(_awaited, AwaitedPool, psycopg.AsyncRawCursor)
BLOCKING = Colour(_done, BlockingPool, psycopg.RawCursor)
