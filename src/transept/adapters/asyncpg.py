"""PostgreSQL through asyncpg."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

import asyncpg

from transept._loops import PerLoop
from transept.config import DatabaseSettings, configuration, options_checked
from transept.errors import CommitFailed, CommitInDoubt
from transept.sql.session import Parameters, Result, SQLHandle
from transept.turn import TaskTurn
from transept.unit import Hooks

__all__ = ["AsyncpgConfig"]


POOL_OPTIONS = frozenset(
    name for call in (asyncpg.create_pool, asyncpg.connect) for name in inspect.signature(call).parameters
) - {"connect_kwargs"}


@configuration
class AsyncpgConfig(DatabaseSettings):
    """A PostgreSQL database through asyncpg and its own pool.

    Args:
        pool_config: the keywords of `asyncpg.create_pool`, such as ``{"dsn": "postgresql://localhost/app"}``.
        bind_key, session_key, commit_mode, extra_commit_statuses, extra_rollback_statuses: as on every database.

    The pool is made at first use, or at start-up, one for each event loop, and closed at shutdown or with its loop.
    """

    pool_config: Mapping[str, Any] = field(default_factory=dict)

    dialect: ClassVar[str] = "postgresql"
    blocking: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        options_checked("AsyncpgConfig", "pool_config", self.pool_config, POOL_OPTIONS)
        self._pools = PerLoop(lambda: LoopPool(self.pool_config), LoopPool.close)

    def open(self, hooks: Hooks, reads_only: bool) -> SQLHandle:
        return SQLHandle(self._route(hooks) or self, TaskTurn(), reads_only)

    async def start(self) -> None:
        """The pool connects when it is first needed, so an app starts while its database is down."""

    async def stop(self) -> None:
        await self._pools.close()

    async def link(self) -> AsyncpgLink:
        pool = await self._pools.get().opened()
        return AsyncpgLink(self.key, pool, await pool.acquire())


class LoopPool:
    """The pool of one event loop, opened by the first that needs it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = {"min_size": 0, **options}
        self._opening = asyncio.Lock()
        self._pool: Any = None

    async def opened(self) -> Any:
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(**self._options)
        return self._pool

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()


class AsyncpgLink:
    """One asyncpg connection for one transaction, begun and ended in SQL, so that COMMIT's own answer is seen."""

    def __init__(self, key: str, pool: Any, connection: Any) -> None:
        self._key = key
        self._pool = pool
        self._connection = connection

    async def begin(self, may_write: bool) -> None:
        await self._connection.execute("BEGIN")

    async def run(self, sql: str, parameters: Parameters) -> Result:
        if isinstance(parameters, Mapping):
            raise TypeError("asyncpg takes positional parameters ($1, $2): pass them one by one or as a tuple")
        if not parameters and sql.startswith(("SAVEPOINT ", "ROLLBACK TO ", "RELEASE ")):
            await self._connection.execute(sql)
            return Result((), (), 0)
        statement = await self._connection.prepare(sql)
        rows = await statement.fetch(*parameters)
        names = tuple(attribute.name for attribute in statement.get_attributes())
        return Result(names, rows, _affected(statement.get_statusmsg()))

    async def gone(self) -> str | None:
        try:
            await self._connection.execute("SELECT 1")
        except asyncpg.PostgresError:
            return "an earlier error aborted the transaction"
        return None

    async def commit(self) -> None:
        try:
            answer = await self._connection.execute("COMMIT")
        except BaseException as error:
            if _in_doubt(error):
                raise CommitInDoubt(self._key) from error
            raise
        if answer != "COMMIT":
            raise CommitFailed(self._key, f"PostgreSQL answered COMMIT with {answer}: an earlier error aborted it")

    async def rollback(self) -> None:
        if self._connection.is_in_transaction():
            await self._connection.execute("ROLLBACK")

    async def release(self) -> None:
        await self._pool.release(self._connection)

    async def drop(self) -> None:
        self._connection.terminate()
        await self._pool.release(self._connection)


def _in_doubt(error: BaseException) -> bool:
    """Whether COMMIT may have been carried out; an `InterfaceError` means that it was never sent."""
    if isinstance(error, asyncpg.PostgresError):
        return str(getattr(error, "sqlstate", None) or "08").startswith("08")
    return isinstance(error, (OSError, EOFError, TimeoutError, asyncio.CancelledError))


def _affected(status: str | None) -> int:
    """The count in a command tag such as ``INSERT 0 3``."""
    last = (status or "").rsplit(" ", 1)[-1]
    return int(last) if last.isdigit() else 0
