"""What a SQL-first session stands on: a part of a unit of work that runs its statements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transept.sql.link import Cursor
from transept.sql.prepared import Arguments
from transept.sql.result import Result
from transept.sql.statement import Notation

__all__ = ["Driver", "Executor"]


class Driver(Protocol):
    """What a session knows of its driver."""

    @property
    def notation(self) -> Notation: ...

    @property
    def natives(self) -> frozenset[type]: ...


class Executor(Protocol):
    """Runs the statements of one session, and ends what they began."""

    @property
    def database(self) -> Driver: ...

    async def execute(self, sql: Any, arguments: Arguments) -> Result: ...

    async def execute_many(self, sql: Any, sets: Sequence[Arguments]) -> Result: ...

    async def execute_script(self, script: str) -> None: ...

    async def open_cursor(self, reader: Any, sql: Any, arguments: Arguments) -> Cursor: ...

    async def fetch(self, cursor: Cursor, count: int) -> Sequence[Sequence[Any]]: ...

    async def close_cursor(self, cursor: Cursor) -> None: ...

    async def begin(self) -> None: ...

    async def app_ends(self, *, commit: bool) -> None: ...

    async def enter_block(self) -> Any:
        """What comes back is for `leave_block`."""
        ...

    async def leave_block(self, block: Any, error: BaseException | None, /) -> None: ...
