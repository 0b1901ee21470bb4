"""Engines that Transept makes itself: SQLite as a web app needs it, and pools that never stop the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool
from sqlalchemy.util.queue import Queue

from transept._sqlite import MAY_WRITE, begin_statement, memory_name, prepare
from transept.errors import PoolBusyOnLoop
from transept.turn import on_loop

__all__ = ["end_dropped_transactions", "is_memory", "keeper_of", "make_engine", "shared_memory"]

E = TypeVar("E", Engine, AsyncEngine)

INTERRUPT_SECONDS = 0.01


class LoopAwareQueue(Queue[Any]):
    """A pool's queue that is never waited for on an event loop's thread."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if block and on_loop():
            if self.empty():
                raise PoolBusyOnLoop(self.maxsize)
            block = False
        return super().get(block, timeout)


class LoopAwarePool(QueuePool):
    """A queue pool for blocking sessions under an event loop."""

    _sqla_logger_namespace = "sqlalchemy.pool.QueuePool"  # it logs as what it is to users
    _queue_class = LoopAwareQueue


def is_memory(url: URL) -> bool:
    """Whether this is SQLAlchemy's spelling of a private in-memory SQLite database."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def shared_memory(url: URL) -> URL:
    """The in-memory database that all connections of one engine share, with real locks between them.

    SQLAlchemy's own default gives each thread a database of its own, or all tasks one connection.
    """
    return url.set(database=f"file:{memory_name()}", query={**url.query, "vfs": "memdb", "uri": "true"})


def make_engine(url: URL, options: dict[str, Any], create: Callable[..., E], *, blocking: bool) -> E:
    """An engine that is ours, made by `create` from the URL and the options."""
    own_pool = any(options.get(name) is not None for name in ("poolclass", "pool"))
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        options = {**options, "connect_args": {"check_same_thread": False, **(options.get("connect_args") or {})}}
    if not own_pool:
        options = {**options, "poolclass": LoopAwarePool if blocking else AsyncAdaptedQueuePool}
    engine = create(url, **options)
    if is_sqlite:
        _prepare_sqlite(engine.sync_engine if isinstance(engine, AsyncEngine) else engine)
    return engine


def keeper_of(url: URL) -> sqlite3.Connection | None:
    """A connection that keeps the in-memory database of `shared_memory` alive; None for any other."""
    if url.get_backend_name() != "sqlite" or url.query.get("vfs") != "memdb":
        return None
    return sqlite3.connect(f"{url.database}?vfs=memdb", uri=True, check_same_thread=False)


def _prepare_sqlite(engine: Engine) -> None:
    """BEGIN by SQLAlchemy's documented events: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html."""

    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        prepare(cursor.execute)
        cursor.close()

    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(begin_statement(MAY_WRITE.get()))

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
    end_dropped_transactions(engine)


def end_dropped_transactions(engine: Engine) -> None:
    """Let a connection that is dropped, such as after a cancellation, keep no lock. Not for blocking engines."""
    if engine.dialect.name == "sqlite" and engine.dialect.is_async:
        event.listen(engine, "invalidate", _dropped)


def _dropped(connection: Any, record: Any, error: Any) -> None:
    """aiosqlite would finish the statement and then close, and its open cursor would keep the lock.

    The rollback waits in aiosqlite's queue behind the statement, which may not have begun yet: after the rollback it
    would be kept at once. Nothing but `interrupt` may be called from here, as the rest waits for the statement, even
    with Python's lock held.
    """
    driver = connection.driver_connection
    raw = getattr(driver, "_connection", None)
    if not isinstance(raw, sqlite3.Connection):
        return
    loop = asyncio._get_running_loop()
    ended = threading.Event()

    def interrupt() -> None:
        """Again and again: it is lost on a statement that has not begun."""
        if not ended.is_set():
            with suppress(sqlite3.ProgrammingError):  # closed right now
                raw.interrupt()
            if loop is not None:
                loop.call_later(INTERRUPT_SECONDS, interrupt)

    driver._tx.put_nowait((None if loop is None else loop.create_future(), lambda: _roll_back(raw, ended)))
    interrupt()


def _roll_back(raw: sqlite3.Connection, ended: threading.Event) -> None:
    """In aiosqlite's thread. An interrupt may be under way, and strike once more."""
    ended.set()
    for _ in range(2):
        with suppress(sqlite3.Error):
            raw.rollback()
