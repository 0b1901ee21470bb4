"""A connection of psycopg in use, written once for both colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from psycopg.pq import TransactionStatus

from transept.errors import CommitFailed
from transept.sql.faults import of_psycopg
from transept.sql.kinds import Kind, kind_of
from transept.sql.postgres import DECLARED, NATIVES, Session, SessionLink
from transept.sql.result import KeptCursor, Result

if TYPE_CHECKING:
    from transept.adapters._psycopg_pool import Pool

__all__ = ["PsycopgLink"]


class PsycopgLink(SessionLink):
    """One connection for one transaction, begun and ended in SQL, so that COMMIT's own answer is seen."""

    __slots__ = ("_connection", "_cursor", "_cursors", "_done", "_pool", "fresh")

    def __init__(self, pool: Pool, connection: Any, session: Session, *, fresh: bool) -> None:
        self._pool = pool
        self._done = pool.done
        self._connection = connection
        self._cursor = pool.cursor(connection)
        self._cursors = 0
        self.session = session
        self.fresh = fresh

    @property
    def connection(self) -> Any:
        self.session.touch()
        return self._connection

    async def ask(self, sql: str) -> Any:
        await self.command(sql)
        return (await self._done(self._cursor.fetchone()))[0]

    async def begin(self, may_write: bool) -> None:
        await self.command(self.session.begin)

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result:
        self.session.ran(kind)
        cursor = self._cursor
        await self._done(cursor.execute(sql, values or None))
        names = self.names()
        rows = await self._done(cursor.fetchall()) if names else ()
        return Result(names, rows, cursor.rowcount, None, NATIVES)

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        self.session.ran(kind_of(sql, "postgresql"))
        await self._done(self._cursor.executemany(sql, sets))
        count: int = self._cursor.rowcount
        return count

    async def run_script(self, script: str) -> None:
        self.session.touch()
        await self.command(script)

    async def cursor(self, sql: str, values: Sequence[Any]) -> PsycopgCursor | KeptCursor:
        kind = kind_of(sql, "postgresql")
        if kind.verb not in DECLARED:
            return KeptCursor(await self.run(sql, values, kind))
        self.session.ran(kind)
        self._cursors += 1
        name = f"transept_stream_{self._cursors}"
        await self._done(self._cursor.execute(f"DECLARE {name} NO SCROLL CURSOR FOR {sql}", values or None))
        return PsycopgCursor(self, name)

    def still_in_transaction(self) -> bool:
        return self.status() in (TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.ACTIVE)

    async def gone(self) -> str | None:
        return "an earlier error aborted the transaction" if self.status() is TransactionStatus.INERROR else None

    async def commit(self) -> None:
        if self.status() is TransactionStatus.IDLE:
            raise CommitFailed(self._pool.key, "the transaction had ended before", advice="")
        await self.command("COMMIT")
        answer = self._cursor.statusmessage
        if answer != "COMMIT":
            raise CommitFailed(self._pool.key, f"PostgreSQL answered COMMIT with {answer}: an earlier error aborted it")

    async def rollback(self) -> None:
        if self.status() in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
            return
        try:
            await self.command("ROLLBACK")
        except Exception as error:
            fault = of_psycopg(error)
            if fault is None or not fault.lost:  # a transaction ends with its connection
                raise

    async def release(self) -> None:
        try:
            if self.session.needs_reset() and self.status() is not TransactionStatus.UNKNOWN:
                await self._pool.reset(self._connection)
        except BaseException:
            await self.drop()
            raise
        await self._pool.give_back(self._connection)

    async def drop(self) -> None:
        self._connection.pgconn.finish()
        await self._pool.give_back(self._connection)

    # What its cursors use, too.

    async def command(self, sql: str) -> None:
        """Run something without values that is not worth being prepared."""
        await self._done(self._cursor.execute(sql, prepare=False))

    async def fetched(self) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await self._done(self._cursor.fetchall())
        return rows

    def names(self) -> tuple[str, ...]:
        result = self._cursor.pgresult  # several times as fast as the cursor's description
        if result is None or not result.nfields:
            return ()
        encoding = self._connection.info.encoding
        return tuple([result.fname(column).decode(encoding) for column in range(result.nfields)])

    def status(self) -> TransactionStatus:
        status: TransactionStatus = self._connection.info.transaction_status
        return status


class PsycopgCursor:
    """A cursor of the server."""

    def __init__(self, link: PsycopgLink, name: str) -> None:
        self._link = link
        self._name = name
        self.column_names: tuple[str, ...] = ()

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        await self._link.command(f"FETCH FORWARD {count} FROM {self._name}")
        self.column_names = self._link.names()
        return await self._link.fetched()

    async def close(self) -> None:
        """It has ended with the transaction, where that has failed."""
        if self._link.status() is TransactionStatus.INTRANS:
            await self._link.command(f"CLOSE {self._name}")
