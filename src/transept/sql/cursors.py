"""The results of one transaction that the server still holds."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from weakref import ref

from transept.sql.link import Cursor

__all__ = ["OpenCursors"]


class OpenCursors:
    """The open cursors, each for as long as its reader wants it; one without a reader ends with the transaction."""

    __slots__ = ("_readers",)

    def __init__(self) -> None:
        self._readers: dict[Cursor, ref[Any]] = {}

    def add(self, cursor: Cursor, reader: object) -> None:
        self._readers[cursor] = ref(reader)

    def being_read(self) -> bool:
        """Whether somebody may still read from one."""
        return any(reader() is not None for reader in self._readers.values())

    async def close(self, cursor: Cursor) -> None:
        if self._readers.pop(cursor, None) is not None:
            await cursor.close()

    async def close_all(self) -> None:
        while self._readers:
            await self.close(next(iter(self._readers)))

    async def abandon(self, since: int = 0) -> None:
        """Close them before a rollback, which ends those that cannot be; all but the first `since` of them."""
        for cursor in list(self._readers)[since:]:
            with suppress(Exception):
                await self.close(cursor)

    async def close_unread(self) -> None:
        """Close those whose reader is gone: some drivers run nothing else while one is open."""
        for cursor, reader in list(self._readers.items()):
            if reader() is None:
                await self.close(cursor)

    def __len__(self) -> int:
        return len(self._readers)

    def forget(self) -> None:
        """They have ended with their transaction."""
        self._readers.clear()

    def __contains__(self, cursor: object) -> bool:
        return cursor in self._readers
