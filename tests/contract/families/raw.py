"""SQL-first sessions, in both colours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from transept.errors import SQLError


class RawFamily:
    """What both colours have in common."""

    can = frozenset({"nested", "cursor"})
    late_error = SQLError
    statement_error = SQLError

    async def stop(self, database: Any) -> None:
        await database.stop()


class AwaitedSQL(RawFamily):
    """`SQLSession`."""

    blocking = False

    async def run(self, session: Any, sql: str) -> None:
        await session.execute(sql)

    async def value(self, session: Any, sql: str) -> Any:
        return await session.select_value(sql)

    async def commit(self, session: Any) -> None:
        await session.commit()

    async def rollback(self, session: Any) -> None:
        await session.rollback()

    async def close(self, session: Any) -> None:
        await session.rollback()

    async def failing_in_savepoint(self, session: Any, first: Callable[[], Any] = lambda: None) -> None:
        with suppress(SQLError):
            async with session.transaction():
                first()
                await session.execute("SELECT nonsense")

    async def cursor(self, session: Any, sql: str) -> Any:
        stream = session.stream(sql, chunk_size=2)
        first = await anext(stream)

        async def rows() -> AsyncIterator[Any]:
            yield first["v"]
            async for row in stream:
                yield row["v"]

        return rows()


class BlockingSQL(RawFamily):
    """`BlockingSQLSession`."""

    blocking = True

    async def run(self, session: Any, sql: str) -> None:
        session.execute(sql)

    async def value(self, session: Any, sql: str) -> Any:
        return session.select_value(sql)

    async def commit(self, session: Any) -> None:
        session.commit()

    async def rollback(self, session: Any) -> None:
        session.rollback()

    async def close(self, session: Any) -> None:
        session.rollback()

    async def failing_in_savepoint(self, session: Any, first: Callable[[], Any] = lambda: None) -> None:
        with suppress(SQLError), session.transaction():
            first()
            session.execute("SELECT nonsense")

    async def cursor(self, session: Any, sql: str) -> Any:
        stream = session.stream(sql, chunk_size=2)
        first = next(stream)

        async def rows() -> AsyncIterator[Any]:
            yield first["v"]
            for row in stream:
                yield row["v"]

        return rows()
