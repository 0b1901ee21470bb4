"""What an adapter does for one connection of its driver, and what it tells of the driver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from transept.sql.faults import Fault
from transept.sql.kinds import Kind
from transept.sql.result import Result
from transept.sql.statement import Notation
from transept.sql.values import Table

__all__ = ["Cursor", "Link", "Linker"]


class Cursor(Protocol):
    """A result that the server still holds, read in pieces."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Known after the first `fetch`."""
        ...

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        """At most that many rows; none at the end."""
        ...

    async def close(self) -> None: ...


class Link(Protocol):
    """A connection in use: taken for one transaction, or for one statement. Awaits only its own driver.

    What its methods raise are the errors of the driver, unless they say otherwise.
    """

    @property
    def connection(self) -> Any:
        """The driver's own."""
        ...

    @property
    def fresh(self) -> bool:
        """Whether the connection was made for this user, so that it cannot have died in the pool."""
        ...

    def runs_bare(self, kind: Kind) -> bool:
        """Whether this statement may run outside of a transaction, because the server proves that it only reads.

        If it does not, the server refuses it, and `refused_bare` says so of its error.
        """
        ...

    def refused_bare(self, fault: Fault) -> bool: ...

    async def begin(self, may_write: bool) -> None: ...

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result: ...

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        """Once for each set of values; how many rows were affected, -1 if the driver does not tell."""
        ...

    async def run_script(self, script: str) -> None:
        """Several statements, none with values."""
        ...

    async def cursor(self, sql: str, values: Sequence[Any]) -> Cursor: ...

    def still_in_transaction(self) -> bool:
        """Whether the transaction may be open still, after somebody else used the connection. No I/O."""
        ...

    async def ended_by(self, fault: Fault) -> bool:
        """Whether this error of the last statement has ended the transaction, so that no savepoint brings it back.

        What the app does next must be rolled back, then, and not be kept as it comes.
        """
        ...

    async def gone(self) -> str | None:
        """Why COMMIT would keep nothing, after an error that did not end the transaction; None if it would."""
        ...

    async def commit(self) -> None:
        """Raises the driver's error, or `CommitFailed` if the server rolled back instead."""
        ...

    async def rollback(self) -> None: ...

    async def release(self) -> None:
        """Give the connection back, after a transaction or a statement."""
        ...

    async def drop(self) -> None:
        """Close the connection, whatever state it is in. Waits for no answer of a server."""
        ...


class Linker(Protocol):
    """A raw database as its handles see it."""

    @property
    def key(self) -> str: ...

    @property
    def notation(self) -> Notation:
        """How its statements are written."""
        ...

    @property
    def natives(self) -> frozenset[type]:
        """The types that its rows come with as they are."""
        ...

    @property
    def adapts(self) -> Table:
        """What becomes of values of types that the driver does not take."""
        ...

    @property
    def driver_connection(self) -> type:
        """The class of the driver's connections."""
        ...

    def fault_of(self, error: BaseException) -> Fault | None:
        """What this error of the driver means; None if it is none."""
        ...

    async def link(self, holder: str) -> Link:
        """Take a connection, for this user of it.

        Raises:
            PoolTimeout: none became free in time.
            PoolBusyOnLoop: none is free, and a blocking session asked on an event loop's thread.
        """
        ...
