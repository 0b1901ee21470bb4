"""The driver's connection in a unit of work: taken at first use, settled with it, the same names on each driver."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

from transept._bridge import run_now
from transept.errors import UsageError
from transept.sql.executor import Executor
from transept.sql.link import Link, Linker
from transept.sql.prepared import Arguments
from transept.sql.result import Result
from transept.sql.session import BlockingSessionTransaction, SessionTransaction, arguments_of

__all__ = ["BlockingConnection", "BlockingCursor", "Connection", "Cursor", "Used"]

T = TypeVar("T")

Column = tuple[str, None, None, None, None, None, None]


class Used(Executor, Protocol):
    """An executor that also lets the driver's own connection be used; see `transept.sql.handle.SQLHandle`."""

    @property
    def database(self) -> Linker: ...

    async def use(
        self, work: Callable[[Link], Awaitable[T]], sql: str | None = None, *, writes: bool = True, raw: bool = False
    ) -> T: ...

    def attribute(self, name: str) -> Any: ...


class RawConnection:
    """What both colours share: everything that the driver's connection has, by its name there."""

    def __init__(self, handle: Used) -> None:
        self._handle = handle

    def __getattr__(self, name: str) -> Any:
        """A method of the driver's connection runs in the transaction, or begins it; an attribute needs one."""
        if name.startswith("_"):
            raise AttributeError(name)
        driver = self._handle.database.driver_connection
        of_class = inspect.getattr_static(driver, name, None)
        if of_class is None:
            raise AttributeError(f"neither this handle nor {driver.__module__}.{driver.__qualname__} has {name!r}")
        if callable(of_class):
            return self._calling(name)
        return self._handle.attribute(name)

    def _calling(self, name: str) -> Callable[..., Any]:
        raise NotImplementedError


class Connection(RawConnection):
    """A handle on an async driver's connection.

    `commit`, `rollback`, `cursor` and `execute` are there on each driver; all else is passed on, and awaited.
    """

    async def commit(self) -> None:
        """As `SQLSession.commit`."""
        await self._handle.app_ends(commit=True)

    async def rollback(self) -> None:
        """As `SQLSession.rollback`."""
        await self._handle.app_ends(commit=False)

    async def close(self) -> None:
        """Roll back what is uncommitted. The connection itself belongs to the pool."""
        await self._handle.app_ends(commit=False)

    def cursor(self) -> Cursor:
        """A cursor: ``await connection.cursor()``, without the `await`, or in an ``async with``."""
        return Cursor(self._handle)

    def execute(self, statement: Any, /, *parameters: Any, **named: Any) -> Cursor:
        """``await connection.execute(...)`` runs the statement and gives a cursor with its rows."""
        return Cursor(self._handle, (statement, arguments_of(parameters, named)))

    def transaction(self) -> SessionTransaction:
        """As `SQLSession.transaction`."""
        return SessionTransaction(self._handle)

    def _calling(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **keywords: Any) -> Any:
            async def work(link: Link) -> Any:
                result = getattr(link.connection, name)(*arguments, **keywords)
                return await result if inspect.isawaitable(result) else result

            return await self._handle.use(work, raw=True)

        return call


class BlockingConnection(RawConnection):
    """The blocking twin of `Connection`."""

    def commit(self) -> None:
        """As `SQLSession.commit`."""
        run_now(self._handle.app_ends(commit=True))

    def rollback(self) -> None:
        """As `SQLSession.rollback`."""
        run_now(self._handle.app_ends(commit=False))

    def close(self) -> None:
        """Roll back what is uncommitted. The connection itself belongs to the pool."""
        run_now(self._handle.app_ends(commit=False))

    def cursor(self) -> BlockingCursor:
        """A cursor."""
        return BlockingCursor(self._handle)

    def execute(self, statement: Any, /, *parameters: Any, **named: Any) -> BlockingCursor:
        """Runs the statement and gives a cursor with its rows."""
        return self.cursor().execute(statement, *parameters, **named)

    def transaction(self) -> BlockingSessionTransaction:
        """As `SQLSession.transaction`."""
        return BlockingSessionTransaction(self._handle)

    def _calling(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            async def work(link: Link) -> Any:
                return getattr(link.connection, name)(*arguments, **keywords)

            return run_now(self._handle.use(work, raw=True))

        return call


class RowsInHand:
    """What the cursors of both colours share. Rows are tuples, on each driver. See PEP 249."""

    arraysize = 1

    def __init__(self, handle: Used) -> None:
        self._handle = handle
        self._result: Result | None = None
        self._next = 0

    @property
    def description(self) -> tuple[Column, ...] | None:
        """The columns' names, each with six Nones; None where the statement gave no rows."""
        if self._result is None or not self._result.column_names:
            return None
        return tuple((name, None, None, None, None, None, None) for name in self._result.column_names)

    @property
    def rowcount(self) -> int:
        """The rows that there are, or that were affected; -1 if nobody knows."""
        if self._result is None:
            return -1
        return len(self._result) or self._result.rows_affected

    @property
    def lastrowid(self) -> int | None:
        """As `Result.last_inserted_id`."""
        return None if self._result is None else self._result.last_inserted_id

    def _keep(self, result: Result) -> None:
        self._result, self._next = result, 0

    def _take(self, count: int | None) -> list[tuple[Any, ...]]:
        if self._result is None:
            raise UsageError("this cursor has executed nothing yet: call execute() first.")
        rows = self._result.rows
        end = len(rows) if count is None else min(self._next + count, len(rows))
        taken = [tuple(row) for row in rows[self._next : end]]
        self._next = end
        return taken


class Cursor(RowsInHand):
    """A cursor over rows in memory, on an async driver."""

    def __init__(self, handle: Used, statement: tuple[Any, Arguments] | None = None) -> None:
        super().__init__(handle)
        self._statement = statement

    def __await__(self) -> Generator[Any, None, Cursor]:
        return self._executed().__await__()

    async def execute(self, statement: Any, /, *parameters: Any, **named: Any) -> Cursor:
        """Run one statement; see `SQLSession.execute`."""
        self._keep(await self._handle.execute(statement, arguments_of(parameters, named)))
        return self

    async def executemany(self, statement: Any, parameters: Sequence[Arguments]) -> Cursor:
        """Run one statement for each set of parameters."""
        self._keep(await self._handle.execute_many(statement, list(parameters)))
        return self

    async def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None."""
        return next(iter(self._take(1)), None)

    async def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """The next `size` rows, or fewer at the end."""
        return self._take(self.arraysize if size is None else size)

    async def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        return self._take(None)

    async def close(self) -> None:
        """Forget the rows."""
        self._result = None

    async def __aenter__(self) -> Cursor:
        return await self._executed()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._result = None

    async def __aiter__(self) -> AsyncIterator[tuple[Any, ...]]:
        for row in self._take(None):
            yield row

    async def _executed(self) -> Cursor:
        statement, self._statement = self._statement, None
        if statement is not None:
            self._keep(await self._handle.execute(*statement))
        return self


class BlockingCursor(RowsInHand):
    """The blocking twin of `Cursor`."""

    def execute(self, statement: Any, /, *parameters: Any, **named: Any) -> BlockingCursor:
        """Run one statement; see `SQLSession.execute`."""
        self._keep(run_now(self._handle.execute(statement, arguments_of(parameters, named))))
        return self

    def executemany(self, statement: Any, parameters: Sequence[Arguments]) -> BlockingCursor:
        """Run one statement for each set of parameters."""
        self._keep(run_now(self._handle.execute_many(statement, list(parameters))))
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        """The next row, or None."""
        return next(iter(self._take(1)), None)

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """The next `size` rows, or fewer at the end."""
        return self._take(self.arraysize if size is None else size)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that are left."""
        return self._take(None)

    def close(self) -> None:
        """Forget the rows."""
        self._result = None

    def __enter__(self) -> BlockingCursor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._result = None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self._take(None))
