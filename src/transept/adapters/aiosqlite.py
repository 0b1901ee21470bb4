"""SQLite through aiosqlite, which has a thread for each connection."""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, ClassVar, TypeVar

try:
    import aiosqlite
except ImportError as error:
    raise ImportError("transept.adapters.aiosqlite needs aiosqlite: pip install 'transept[aiosqlite]'") from error

from transept._loops import PerLoop, started
from transept._sqlite import begin_statement
from transept.config import configuration
from transept.errors import CommitFailed, UsageError
from transept.sql.faults import Fault
from transept.sql.kinds import Kind
from transept.sql.lite import LiteCursor, LiteLink, LiteSettings, run
from transept.sql.pool import AsyncPool
from transept.sql.result import Result
from transept.sql.settings import AsyncSettings
from transept.sql.tokens import split

__all__ = ["AiosqliteConfig"]

T = TypeVar("T")

SAVEPOINT = re.compile(r"(SAVEPOINT|ROLLBACK TO SAVEPOINT) transept_(\d+)$")
INTERRUPT_SECONDS = 0.01
CANCELLED = "a statement was cancelled, and nobody knows how much of it was done"

logger = logging.getLogger("transept")


@configuration
class AiosqliteConfig(AsyncSettings, LiteSettings):
    """A SQLite database through aiosqlite; the settings of `DriverSettings`.

    Args:
        pool_config: the keywords of `aiosqlite.connect`, such as ``{"database": "app.db"}``, or a ``dsn``, such as
            ``"sqlite:///app.db?mode=ro"``; and of the pool: ``max_size`` (5), ``min_size``, ``max_idle`` in seconds.
            ``timeout`` is how many seconds a statement waits while another transaction writes, 5 unless it is given.
            ``":memory:"`` is one in-memory database that lives until it is stopped and that all connections share.

    The pool is Transept's, one for each event loop, and closed at shutdown or with its loop.
    """

    driver_connection: ClassVar[type] = aiosqlite.Connection

    def __post_init__(self) -> None:
        super().__post_init__()
        self._chunk_size = self._options.pop("iter_chunk_size", 64)
        self._pools = PerLoop(self._new_pool, _close_pool)

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        return super().pool_options() | {"iter_chunk_size"}

    async def link(self, holder: str) -> AiosqliteLink:
        return await self._pools.get().acquire(holder)

    async def _warm(self, connections: int) -> None:
        await self._pools.get().warm(connections)

    async def stop(self) -> None:
        await self._pools.close()
        self._forget_memory()

    async def provide_pool(self) -> AsyncPool[AiosqliteLink]:
        """The pool of the running event loop, which is Transept's: the driver has none."""
        return self._pools.get()

    async def close_pool(self) -> None:
        """Close it, and forget a database in memory; the next use begins anew."""
        await self.stop()

    def _new_pool(self) -> LitePool:
        pool: LitePool = LitePool(lambda: self._connect(pool), AiosqliteLink.close, self._pool_settings())
        self._announce(pool)
        return pool

    async def _connect(self, pool: LitePool) -> AiosqliteLink:
        made: list[sqlite3.Connection] = []
        unwanted = threading.Event()

        def connected() -> sqlite3.Connection:
            made.append(self._connected())
            if unwanted.is_set():
                made[0].close()
            return made[0]

        connection = _in_daemon(lambda: aiosqlite.Connection(connected, self._chunk_size))
        try:
            await connection
        except BaseException as error:  # cancelled: aiosqlite ends the thread, and forgets what is made there
            unwanted.set()
            for raw in made:
                raw.close()
            if isinstance(error, Exception):
                connection._thread.join()  # its last act is to tell the loop, which may be closed soon
            raise
        return AiosqliteLink(connection, made[0], pool)


class LitePool(AsyncPool["AiosqliteLink"]):
    """The pool of one event loop, and the connections that it gave up and that are not closed yet."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.abandoned: set[asyncio.Task[None]] = set()


async def _close_pool(pool: LitePool) -> None:
    await pool.close()
    if pool.abandoned:
        await asyncio.wait(pool.abandoned)


def _in_daemon(make: Callable[[], T]) -> T:
    """Make something in a daemon thread, so that a thread that it makes is one, too.

    The interpreter would wait for the thread of a connection that nobody closed, for ever.
    """
    made: list[T] = []
    maker = threading.Thread(target=lambda: made.append(make()), daemon=True)
    maker.start()
    maker.join()
    return made[0]


class Work:
    """What is to be done in a connection's thread, in the place of a cursor: `aiosqlite.Cursor` calls `fetchall`.

    So a statement and its rows take one way to the thread and back, not two.
    """

    __slots__ = ("fetchall",)

    def __init__(self, fetchall: Callable[[], Any]) -> None:
        self.fetchall = fetchall


class AiosqliteLink(LiteLink):
    """One connection; pooled as it is.

    A statement whose user is cancelled runs on in the thread, or has yet to: what it did cannot be kept, and what comes
    next waits for it.
    """

    __slots__ = ("_cancelled_at", "_left", "_pool", "_raw", "_savepoints", "connection")

    def __init__(self, connection: aiosqlite.Connection, raw: sqlite3.Connection, pool: LitePool) -> None:
        super().__init__()
        self.connection = connection
        self._raw = raw
        self._pool = pool
        self._left = False  # a statement may be in the thread still
        self._cancelled_at: int | None = None
        self._savepoints = 0

    async def do(self, work: Callable[[], T]) -> T:
        """In the connection's thread, after all that was asked for before."""
        job: Any = Work(work)
        answer: Any = aiosqlite.Cursor(self.connection, job).fetchall()
        try:
            done: T = await answer
        except asyncio.CancelledError:
            self._left = True
            if self._cancelled_at is None:
                self._cancelled_at = self._savepoints
            raise
        return done

    async def begin(self, may_write: bool) -> None:
        self._savepoints = 0
        await self.do(lambda: self._raw.execute(begin_statement(may_write)))

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result:
        if kind.verb == "SAVEPOINT":
            return await self._command(sql)
        self._check()
        self.note(kind)
        return await self.do(lambda: run(self._raw, sql, values))

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        self._check()
        return await self.do(lambda: self._raw.executemany(sql, sets).rowcount)

    async def run_script(self, script: str) -> None:
        self._check()

        statements = split(script, "sqlite")
        self.note_script(statements)

        def run_all() -> None:
            for statement in statements:
                self._raw.execute(statement)

        await self.do(run_all)

    async def cursor(self, sql: str, values: Sequence[Any]) -> AiosqliteCursor:
        self._check()
        return AiosqliteCursor(self, await self.do(lambda: self._raw.execute(sql, values)))

    def still_in_transaction(self) -> bool:
        return self._raw.in_transaction

    async def ended_by(self, fault: Fault) -> bool:
        """SQLite drops the transaction at some errors; what follows would be kept at once, so a new one is begun."""
        if self._raw.in_transaction:
            return False
        await self.do(lambda: self._raw.execute("BEGIN"))
        return True

    async def commit(self) -> None:
        if self._cancelled_at is not None:
            raise CommitFailed(self._pool.settings.database, CANCELLED)
        await self.do(lambda: self._raw.execute("COMMIT"))

    async def rollback(self) -> None:
        await self._after_all(lambda: _roll_back(self._raw))
        self._cancelled_at = None

    async def release(self) -> None:
        if self.stained:
            await self.drop()
        else:
            self._pool.release(self)

    async def drop(self) -> None:
        closing = started(self._abandon())
        self._pool.abandoned.add(closing)
        closing.add_done_callback(self._pool.abandoned.discard)
        self._pool.discard(self)

    async def close(self) -> None:
        await self.connection.close()

    async def _command(self, sql: str) -> Result:
        """A statement about savepoints. One that undoes a statement that was cancelled heals the transaction."""
        found = SAVEPOINT.match(sql)
        number = int(found[2]) if found else 0
        if found and found[1] == "SAVEPOINT":
            self._savepoints = number
        heals = found is not None and found[1] != "SAVEPOINT"
        if not heals:
            self._check()
        result = await self.do(lambda: run(self._raw, sql, ()))
        if heals and self._cancelled_at is not None and number <= self._cancelled_at:
            self._cancelled_at = None
            self._left = False
        return result

    def _check(self) -> None:
        if self._cancelled_at is not None:
            raise UsageError(
                f"on database {self._pool.settings.database!r} {CANCELLED}: roll back, before anything else."
            )

    async def _abandon(self) -> None:
        try:
            await self._after_all(lambda: _roll_back(self._raw))
        except sqlite3.Error:
            logger.warning("a transaction on %r could not be rolled back", self._pool.settings.database, exc_info=True)
        finally:
            await self.connection.close()

    async def _after_all(self, work: Callable[[], T]) -> T:
        """As `do`, but whoever is in the thread still is interrupted.

        Again and again, for an interrupt is lost on a statement that has not begun. Nothing else may be called, as all
        else would wait for the statement, even with Python's lock held.
        """
        if not self._left:
            return await self.do(work)
        begun = threading.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            if not begun.is_set():
                with suppress(sqlite3.ProgrammingError):  # closed right now
                    self._raw.interrupt()
                loop.call_later(INTERRUPT_SECONDS, interrupt)

        def begin() -> T:
            begun.set()
            return work()

        # The first interrupt must come after the work is queued.
        loop.call_soon(interrupt)
        try:
            done = await self.do(begin)
        except Exception:
            begun.set()
            raise
        self._left = False
        return done


class AiosqliteCursor(LiteCursor):
    """A statement that has rows left."""

    __slots__ = ("_link",)

    def __init__(self, link: AiosqliteLink, cursor: sqlite3.Cursor) -> None:
        super().__init__(cursor)
        self._link = link

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        return await self._link.do(lambda: self._cursor.fetchmany(count))

    async def close(self) -> None:
        await self._link.do(self._cursor.close)


def _roll_back(raw: sqlite3.Connection) -> None:
    """An interrupt may be under way, and strike once more."""
    if raw.in_transaction:
        try:
            raw.execute("ROLLBACK")
        except sqlite3.OperationalError:
            if raw.in_transaction:
                raw.execute("ROLLBACK")
