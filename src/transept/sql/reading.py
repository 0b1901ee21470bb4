"""Rows that are read from the server in pieces, as they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from transept._bridge import run_now
from transept.sql.executor import Executor
from transept.sql.link import Cursor
from transept.sql.prepared import Arguments
from transept.sql.rows import maker

__all__ = ["BlockingRowStream", "RowStream"]

T = TypeVar("T")


class Reading(Generic[T]):
    """What both colours share: the cursor, and the rows of the piece that is being given out."""

    def __init__(self, handle: Executor, statement: tuple[Any, Arguments], schema_type: Any, size: int) -> None:
        self._handle = handle
        self._statement = statement
        self._schema_type = schema_type
        self._size = size
        self._cursor: Cursor | None = None
        self._rows: Iterator[T] = iter(())
        self._over = False

    async def _more(self) -> bool:
        """Read the next piece; whether there was one."""
        if self._over:
            return False
        if self._cursor is None:
            self._cursor = await self._handle.open_cursor(self, *self._statement)
        piece = await self._handle.fetch(self._cursor, self._size)
        self._over = len(piece) < self._size
        make: Any = maker(self._cursor.column_names, self._schema_type, self._handle.database.natives)
        self._rows = iter(make(piece))
        return bool(piece)

    async def _close(self) -> None:
        self._over = True
        self._rows = iter(())
        if self._cursor is not None:
            await self._handle.close_cursor(self._cursor)


class RowStream(Reading[T], AsyncIterator[T]):
    """The rows of one statement: ``async for row in stream``, or in a block of its own, which closes it.

    The statement runs when the first row is asked for. The transaction stays open until the last row has been read, or
    the stream is closed.
    """

    def __aiter__(self) -> RowStream[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            for row in self._rows:
                return row
            if not await self._more():
                raise StopAsyncIteration

    async def aclose(self) -> None:
        """Read no further."""
        await self._close()

    async def __aenter__(self) -> RowStream[T]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close()


class BlockingRowStream(Reading[T], Iterator[T]):
    """The blocking twin of `RowStream`."""

    def __iter__(self) -> BlockingRowStream[T]:
        return self

    def __next__(self) -> T:
        while True:
            for row in self._rows:
                return row
            if not run_now(self._more()):
                raise StopIteration

    def close(self) -> None:
        """Read no further."""
        run_now(self._close())

    def __enter__(self) -> BlockingRowStream[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run_now(self._close())
