"""The blocking twins of an async database's session and connection: each call runs on the background loop."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from transept._portal import Bridge
from transept.errors import CommitInDoubt, LoopTimeout
from transept.sql.connection import BlockingConnection, Used
from transept.sql.executor import Driver, Executor
from transept.sql.link import Cursor, Link
from transept.sql.prepared import Arguments
from transept.sql.result import Result
from transept.sql.session import BlockingSQLSession

__all__ = ["AcrossExecutor", "PlainHandle", "plain_handle"]

T = TypeVar("T")
E = TypeVar("E", bound=Executor)


class AcrossExecutor(Generic[E]):
    """An async session's executor, for plain code: what it is asked to do runs on the loop, and the thread waits."""

    def __init__(self, executor: E, bridge: Bridge, key: str) -> None:
        self._there = executor
        self._bridge = bridge
        self._key = key

    @property
    def database(self) -> Driver:
        return self._there.database

    async def execute(self, sql: Any, arguments: Arguments) -> Result:
        return self._run(self._there.execute(sql, arguments))

    async def execute_many(self, sql: Any, sets: Sequence[Arguments]) -> Result:
        return self._run(self._there.execute_many(sql, sets))

    async def execute_script(self, script: str) -> None:
        self._run(self._there.execute_script(script))

    async def open_cursor(self, reader: Any, sql: Any, arguments: Arguments) -> Cursor:
        return self._run(self._there.open_cursor(reader, sql, arguments))

    async def fetch(self, cursor: Cursor, count: int) -> Sequence[Sequence[Any]]:
        return self._run(self._there.fetch(cursor, count))

    async def close_cursor(self, cursor: Cursor) -> None:
        self._run(self._there.close_cursor(cursor))

    async def begin(self) -> None:
        self._run(self._there.begin())

    async def app_ends(self, *, commit: bool) -> None:
        self._end(self._there.app_ends(commit=commit), commit)

    async def enter_block(self) -> Any:
        return self._run(self._there.enter_block())

    async def leave_block(self, block: Any, error: BaseException | None, /) -> None:
        self._end(self._there.leave_block(block, error), error is None)

    def _end(self, work: Coroutine[Any, Any, None], commits: bool) -> None:
        """A commit of which nothing is heard in time is in doubt."""
        try:
            self._run(work)
        except LoopTimeout as failure:
            if commits:
                raise CommitInDoubt(self._key) from failure
            raise

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._bridge.run(work, f"database {self._key!r}")


class AcrossUsed(AcrossExecutor[Used]):
    """The same with the driver's own connection."""

    @property
    def database(self) -> Any:
        return self._there.database

    async def use(
        self, work: Callable[[Link], Awaitable[T]], sql: str | None = None, *, writes: bool = True, raw: bool = False
    ) -> T:
        async def awaited(link: Link) -> Any:
            result = await work(link)
            return await result if inspect.isawaitable(result) else result

        result: T = self._run(self._there.use(awaited, sql, writes=writes, raw=raw))
        return result

    def attribute(self, name: str) -> Any:
        return self._there.attribute(name)


class PlainHandle(NamedTuple):
    """What plain code gets of an async handle."""

    session: BlockingSQLSession
    connection: BlockingConnection


def plain_handle(handle: Used, bridge: Bridge, key: str) -> PlainHandle:
    """The blocking twins over this handle."""
    executor = AcrossUsed(handle, bridge, key)
    return PlainHandle(BlockingSQLSession(executor), BlockingConnection(executor))
