"""A small pool, for drivers that have no good one: one for an event loop, one for threads.

`Stock` decides who gets which connection. The two pools here only wait: each waiter is a future, whose result is a
connection that somebody gave back, or None: a slot in which to connect.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Hashable, Mapping
from concurrent import futures
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from transept._forks import begins_anew
from transept._loops import started
from transept.errors import ImproperConfigurationError, PoolBusyOnLoop, PoolTimeout
from transept.sql.stock import Stock
from transept.turn import on_loop

__all__ = ["SIZES", "AsyncPool", "PoolSettings", "ThreadPool"]

C = TypeVar("C")
W = TypeVar("W", bound=Hashable)

WARMING = "the start of the pool"
SIZES = ("min_size", "max_size", "max_idle")

logger = logging.getLogger("transept")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How a pool behaves.

    Args:
        database: the database's key, for errors and logs.
        max_size: how many connections there are at most at any time, those that are being made or closed among them.
        timeout: seconds to wait for a connection to become free. Connecting has the driver's own timeout.
        max_idle: seconds after which an idle connection is closed when somebody next asks for one; None: never.
        min_size: how many connections there are from the start.
        owner: whose settings these are, for errors.
        spellings: how settings that were given by another name are called there, by their name here.

    Raises:
        ImproperConfigurationError: a size that is no whole number or out of range, or seconds that are none.
    """

    database: str
    max_size: int = 5
    timeout: float = 10.0
    max_idle: float | None = None
    min_size: int = 0
    owner: str = "PoolSettings"
    spellings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _is_size(self.max_size) or self.max_size < 1:
            raise self._refused("max_size", "a pool has at least 1 connection: give a whole number, 1 or more.")
        if not _is_size(self.min_size) or not 0 <= self.min_size <= self.max_size:
            most = f"{self.spellings.get('max_size', 'max_size')}={self.max_size}"
            raise self._refused("min_size", f"give a whole number, at least 0 and at most {most}.")
        if not _are_seconds(self.timeout):
            raise self._refused("timeout", "seconds are needed, 0 or more.")
        if self.max_idle is not None and not _are_seconds(self.max_idle):
            raise self._refused("max_idle", "seconds are needed, 0 or more, or None to keep idle connections.")

    def _refused(self, setting: str, allowed: str) -> ImproperConfigurationError:
        name = self.spellings.get(setting, setting)
        return ImproperConfigurationError(f"{self.owner}: {name}={getattr(self, setting)!r}: {allowed}")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0


class _Pool(Generic[C, W]):
    """What both pools have: settings, a stock and its counts."""

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._stock: Stock[C, W] = Stock(settings.max_size, settings.max_idle)

    @property
    def size(self) -> int:
        """Connections that are idle, in use, being made or being closed."""
        return self._stock.size

    @property
    def in_use(self) -> int:
        """Connections that somebody has."""
        return self._stock.in_use

    @property
    def idle(self) -> int:
        """Connections that nobody has, ready to be used."""
        return self._stock.idle

    def _timed_out(self) -> PoolTimeout:
        return PoolTimeout(self.settings.database, self.settings.timeout, self._stock.holders(monotonic()))

    def _warn_of_close(self) -> None:
        logger.warning("a connection to %r could not be closed", self.settings.database, exc_info=True)


class AsyncPool(_Pool[C, "asyncio.Future[C | None]"]):
    """The pool of one event loop. `connect` makes a connection, `close` ends one.

    A connect that is cancelled half-way has to end its half-made connection itself. A connection that cannot be closed
    is logged, and gone.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[C]], close: Callable[[C], Awaitable[None]], settings: PoolSettings
    ) -> None:
        super().__init__(settings)
        self._connect = connect
        self._close = close
        self._closing: set[asyncio.Task[None]] = set()

    async def acquire(self, holder: str) -> C:
        """A connection, until `release` or `discard`. `holder` says who takes it, such as ``"POST /users"``.

        Raises:
            PoolTimeout: none became free in time; names the holders of all.
        """
        now = monotonic()
        if self._stock.max_idle is not None:
            self._stock.expire(now)
            self._close_doomed()
        connection = self._stock.take(holder, now)
        if connection is not None:
            return connection
        waiter = asyncio.get_running_loop().create_future()
        if not self._stock.ask(waiter, holder, now=now):
            connection = await self._wait(waiter)
        return await self._connect_for(waiter) if connection is None else connection

    def release(self, connection: C) -> None:
        """Give back a clean connection: to who has waited longest, else it is idle. It does not wait.

        Raises:
            RuntimeError: the connection is not in use.
        """
        waiter = self._stock.give_back(connection, monotonic())
        if waiter is not None:
            waiter.set_result(connection)
        elif self._stock.doomed:
            self._close_doomed()

    def discard(self, connection: C) -> None:
        """Give up a connection in doubt: its slot is free. The caller closes it, best before this.

        Raises:
            RuntimeError: the connection is not in use.
        """
        self._let_connect(self._stock.drop(connection, monotonic()))

    async def warm(self, connections: int) -> None:
        """Connect, one after the other, until there are `connections`, at most `max_size`; raises what that raises."""
        loop = asyncio.get_running_loop()
        while self._stock.reserve(slot := loop.create_future(), connections, holder=WARMING, now=monotonic()):
            self.release(await self._connect_for(slot))

    async def close(self) -> None:
        """Close the idle connections now, and those in use when they come back. A later `acquire` connects anew.

        Returns when all are closed that can be now; they will be, also if this is cancelled.
        """
        self._stock.close()
        self._close_doomed()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _wait(self, waiter: asyncio.Future[C | None]) -> C | None:
        try:
            await asyncio.wait({waiter}, timeout=self.settings.timeout)
        except BaseException:
            self._give_on(waiter)
            raise
        if not waiter.done():
            self._stock.leave(waiter)
            raise self._timed_out()
        return waiter.result()

    def _give_on(self, waiter: asyncio.Future[C | None]) -> None:
        """What a waiter has got already that is cancelled goes to the next."""
        if not waiter.done():
            self._stock.leave(waiter)
        elif (connection := waiter.result()) is None:
            self._let_connect(self._stock.failed(waiter, monotonic()))
        else:
            self.release(connection)

    async def _connect_for(self, waiter: asyncio.Future[C | None]) -> C:
        try:
            connection = await self._connect()
        except BaseException:
            self._let_connect(self._stock.failed(waiter, monotonic()))
            raise
        self._stock.connected(waiter, connection)
        return connection

    def _let_connect(self, waiter: asyncio.Future[C | None] | None) -> None:
        if waiter is not None:
            waiter.set_result(None)

    def _close_doomed(self) -> None:
        """In tasks: nobody who gives back or asks waits for it, and no cancellation of theirs reaches it."""
        while (connection := self._stock.to_close()) is not None:
            task = started(self._shut(connection))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _shut(self, connection: C) -> None:
        try:
            await self._close(connection)
        except Exception:
            self._warn_of_close()
        finally:
            self._let_connect(self._stock.closed(monotonic()))


class ThreadPool(_Pool[C, "futures.Future[C | None]"]):
    """The pool of all threads. `connect` makes a connection, `close` ends one; neither is called under a lock.

    A connection that cannot be closed is logged, and gone.
    """

    def __init__(self, connect: Callable[[], C], close: Callable[[C], None], settings: PoolSettings) -> None:
        super().__init__(settings)
        self._connect = connect
        self._close = close
        self._lock = threading.Lock()
        begins_anew(self)

    def leave_to_the_parent(self) -> object:
        """In a forked process; see `begins_anew`."""
        self._lock = threading.Lock()
        stock, self._stock = self._stock, Stock(self.settings.max_size, self.settings.max_idle)
        return stock

    def acquire(self, holder: str) -> C:
        """A connection, until `release` or `discard`. `holder` says who takes it, such as ``"POST /users"``.

        Raises:
            PoolTimeout: none became free in time; names the holders of all.
            PoolBusyOnLoop: none is free, and this thread runs an event loop, so it must not wait.
        """
        now = monotonic()
        if self._stock.max_idle is not None:
            with self._lock:
                self._stock.expire(now)
            if self._stock.doomed:
                self._close_doomed()
        with self._lock:
            connection = self._stock.take(holder, now)
            if connection is not None:
                return connection
            waiter: futures.Future[C | None] = futures.Future()
            may_connect = self._stock.ask(waiter, holder, now=now)
        if not may_connect:
            connection = self._wait(waiter)
        return self._connect_for(waiter) if connection is None else connection

    def release(self, connection: C) -> None:
        """Give back a clean connection: to who has waited longest, else it is idle. It does not wait.

        After `close`, a connection from before is closed here.

        Raises:
            RuntimeError: the connection is not in use.
        """
        with self._lock:
            waiter = self._stock.give_back(connection, monotonic())
            if waiter is not None:
                waiter.set_result(connection)
        if self._stock.doomed:
            self._close_doomed()

    def discard(self, connection: C) -> None:
        """Give up a connection in doubt: its slot is free. The caller closes it, best before this.

        Raises:
            RuntimeError: the connection is not in use.
        """
        with self._lock:
            self._let_connect(self._stock.drop(connection, monotonic()))

    def warm(self, connections: int) -> None:
        """Connect, one after the other, until there are `connections`, at most `max_size`; raises what that raises."""
        while True:
            slot: futures.Future[C | None] = futures.Future()
            with self._lock:
                if not self._stock.reserve(slot, connections, holder=WARMING, now=monotonic()):
                    return
            self.release(self._connect_for(slot))

    def close(self) -> None:
        """Close the idle connections now, and those in use when they come back. A later `acquire` connects anew."""
        with self._lock:
            self._stock.close()
        self._close_doomed()

    def _wait(self, waiter: futures.Future[C | None]) -> C | None:
        never = on_loop()
        try:
            futures.wait([waiter], 0 if never else self.settings.timeout)
        except BaseException:  # Ctrl-C in the main thread
            self._give_on(waiter)
            raise
        with self._lock:
            if not waiter.done():
                self._stock.leave(waiter)
                raise PoolBusyOnLoop(self.settings.max_size) if never else self._timed_out()
        return waiter.result()

    def _give_on(self, waiter: futures.Future[C | None]) -> None:
        """What a waiter has got already that is interrupted goes to the next."""
        with self._lock:
            if not waiter.done():
                self._stock.leave(waiter)
                return
            connection = waiter.result()
            if connection is None:
                self._let_connect(self._stock.failed(waiter, monotonic()))
                return
        self.release(connection)

    def _connect_for(self, waiter: futures.Future[C | None]) -> C:
        try:
            connection = self._connect()
        except BaseException:
            with self._lock:
                self._let_connect(self._stock.failed(waiter, monotonic()))
            raise
        with self._lock:
            self._stock.connected(waiter, connection)
        return connection

    def _let_connect(self, waiter: futures.Future[C | None] | None) -> None:
        """Under the lock, so that a waiter whose time is up sees either all of it or nothing."""
        if waiter is not None:
            waiter.set_result(None)

    def _close_doomed(self) -> None:
        while (connection := self._next_doomed()) is not None:
            try:
                self._close(connection)
            except Exception:
                self._warn_of_close()
            finally:
                with self._lock:
                    self._let_connect(self._stock.closed(monotonic()))

    def _next_doomed(self) -> C | None:
        with self._lock:
            return self._stock.to_close()
