"""One module for each family of databases: how a case talks to its sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from contract.engines import Engine


class Family(Protocol):
    """What a case needs of a family. Awaitables of a blocking family never suspend.

    `can` holds what its sessions offer to cases: ``nested`` (savepoints), ``cursor`` (a server-side cursor), ``flush``
    (what is pending is written later), ``create_all`` (makes its tables at first use), ``app_engine`` (the app's own
    engines, which begin as it likes), ``saves`` (round trips, where the server proves that they need not be made).
    """

    name: str
    blocking: bool
    drivers: dict[str, tuple[str, ...]]
    can: frozenset[str]
    late_error: type[Exception]
    statement_error: type[Exception]

    def database(self, engine: Engine, driver: str, port: int | None, **settings: Any) -> Any:
        """A database of this family on this engine."""

    async def run(self, session: Any, sql: str) -> None: ...

    async def value(self, session: Any, sql: str) -> Any: ...

    async def commit(self, session: Any) -> None: ...

    async def rollback(self, session: Any) -> None: ...

    async def close(self, session: Any) -> None: ...

    async def failing_in_savepoint(self, session: Any, first: Callable[[], Any] = lambda: None) -> None:
        """`first()` and a failing statement inside the session's own savepoint, the error caught."""

    def cursor(self, session: Any, sql: str) -> Any:
        """An awaitable that opens a server-side cursor and returns an async iterator of its first column."""

    async def stop(self, database: Any) -> None:
        """Close what it has opened."""

    def checked_out(self, database: Any) -> int:
        """How many connections are out of the pool, in the event loop that runs."""


Rows = AsyncIterator[Any]
