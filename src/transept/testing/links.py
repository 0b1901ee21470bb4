"""The sandbox's connection for raw drivers: links that are parts of one."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar
from weakref import ref

from transept._bridge import run_now
from transept.sql.faults import Fault
from transept.sql.kinds import Kind
from transept.sql.link import Cursor, Link, Linker
from transept.sql.result import Result
from transept.sql.statement import Notation
from transept.sql.values import Table
from transept.testing.control import control_word, refuse_two_phase
from transept.testing.driver import DriverConnection
from transept.testing.home import Home, finished
from transept.testing.outer import Outer, explain
from transept.testing.shared import Shared, Source
from transept.testing.turnstile import User

__all__ = ["LinkSource"]

T = TypeVar("T")

COMMAND: Final = Kind("SAVEPOINT", returns_rows=False, reads=True, session=False, several=False)
QUERY: Final = Kind("SELECT", returns_rows=True, reads=True, session=True, several=False)


class LinkSource(Source):
    """Gives each session what links it to the sandbox's connection."""

    def __init__(self, database: Any, home: Home) -> None:
        super().__init__(database.key)
        self._shared = SharedLink(database, None if database.blocking else home)

    def __call__(self, hooks: Any) -> Linker:
        return JoinedLinker(self._shared, hooks)

    def connections(self) -> list[SharedLink]:
        return [self._shared]


class SharedLink(Shared):
    """A link of the adapter's own, made and used at home."""

    def __init__(self, database: Any, home: Home | None) -> None:
        super().__init__(database.key, home)
        self._linker = ref(database)
        self._dialect: str = getattr(database, "dialect", "")
        self._link: Link | None = None

    async def join(self, hooks: Any) -> JoinedLink:
        """Wait for the turn, and take it."""
        turnstile = self.turnstile
        if turnstile is None:
            raise self.over()
        user = User(hooks)
        await (turnstile.take_async(user) if self.home is not None else _taken(turnstile.take, user))
        try:
            if self.outer is None:
                await self.run(self._begin_outer)
            made = JoinedLink(self, user)
            self.joined(user, made)
        except BaseException:
            turnstile.give_back(user)
            raise
        return made

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await (work() if self.home is None else self.home.run(self.one_by_one(work)))

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        if self.home is None:
            return finished(lambda: run_now(work()))
        return self.home.submit(self.one_by_one(work))

    # Where the connection lives.

    def link(self) -> Link:
        if self._link is None:
            raise self.over()
        return self._link

    async def _begin_outer(self) -> None:
        linker: Linker | None = self._linker()
        if linker is None or self.outer is not None:  # begun for one that was cancelled meanwhile
            return
        if self._link is None:
            self._link = await linker.link("the sandbox")
        outer = Outer(self.database, self._dialect, self._sql)
        try:
            await self._link.begin(True)
            await outer.begun()
        except Exception as error:
            await self.disconnect()
            explain(self.database, error)
            raise
        self.outer = outer

    async def roll_back(self) -> None:
        await self.link().rollback()

    async def disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.drop()

    async def _sql(self, sql: str) -> Any:
        rows = sql.lstrip().upper().startswith(("SELECT", "PRAGMA"))
        return (await self.link().run(sql, (), QUERY if rows else COMMAND)).rows

    def linker(self) -> Linker:
        linker: Linker | None = self._linker()
        if linker is None:
            raise self.over()
        return linker


class JoinedLinker:
    """Where one session asks for its link."""

    def __init__(self, shared: SharedLink, hooks: Any) -> None:
        self._shared = shared
        self._hooks = hooks

    @property
    def key(self) -> str:
        return self._shared.database

    @property
    def notation(self) -> Notation:
        return self._shared.linker().notation

    @property
    def natives(self) -> frozenset[type]:
        return self._shared.linker().natives

    @property
    def adapts(self) -> Table:
        return self._shared.linker().adapts

    @property
    def driver_connection(self) -> type:
        return self._shared.linker().driver_connection

    def fault_of(self, error: BaseException) -> Fault | None:
        return self._shared.linker().fault_of(error)

    async def link(self, holder: str) -> Link:
        return await self._shared.join(self._hooks)


class JoinedLink:
    """What one unit has of the sandbox's link: a savepoint."""

    fresh = True

    def __init__(self, shared: SharedLink, user: User) -> None:
        self._shared = shared
        self._user = user
        self._part: str | None = None
        self._in_use = False
        self._over = False

    @property
    def connection(self) -> Any:
        connection = self._shared.link().connection
        return connection if self._shared.home is None else DriverConnection(connection, self._run)

    def runs_bare(self, kind: Kind) -> bool:
        return False

    def refused_bare(self, fault: Fault) -> bool:
        return False

    async def begin(self, may_write: bool) -> None:
        await self._run(self._begin)

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result:
        word = control_word(sql)
        if word is None:
            return await self._run(lambda: self._shared.link().run(sql, values, kind))
        if word == "two_phase":
            refuse_two_phase()
        await self._run({"begin": self._begin, "commit": self._keep_and_go_on, "rollback": self._undo_and_go_on}[word])
        return Result((), (), 0)

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        return await self._run(lambda: self._shared.link().run_many(sql, sets))

    async def run_script(self, script: str) -> None:
        await self._run(lambda: self._shared.link().run_script(script))

    async def cursor(self, sql: str, values: Sequence[Any]) -> Cursor:
        return JoinedCursor(await self._run(lambda: self._shared.link().cursor(sql, values)), self._run)

    def still_in_transaction(self) -> bool:
        return True

    async def ended_by(self, fault: Fault) -> bool:
        return await self._run(lambda: self._shared.link().ended_by(fault))

    async def gone(self) -> str | None:
        return await self._run(lambda: self._shared.link().gone())

    async def commit(self) -> None:
        await self._run(self._keep)
        self._in_use = False

    async def rollback(self) -> None:
        await self._run(self._undo)
        self._in_use = False

    async def release(self) -> None:
        self._give_back()

    async def drop(self) -> None:
        self._give_back()

    def abandon(self) -> None:
        self._over = True

    def _give_back(self) -> None:
        if self._over:
            return
        self._over = True
        if self._in_use:  # also by a statement that was cancelled, and still runs where the connection lives
            self._shared.undo_and_give_back(self._undo, self._user)
        else:
            self._shared.give_back(self._user)

    async def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self._over:
            raise self._shared.over()
        self._in_use = True
        return await self._shared.run(work)

    # Where the connection lives.

    async def _begin(self) -> None:
        if self._over:
            raise self._shared.over()
        if self._part is None:
            self._part = await self._shared.part_of().begin_part()

    async def _keep(self) -> None:
        if self._part is not None:
            await self._shared.part_of().keep_part(self._part)
            self._part = None

    async def _undo(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            await self._shared.part_of().undo_part(part)

    async def _keep_and_go_on(self) -> None:
        await self._keep()
        await self._begin()

    async def _undo_and_go_on(self) -> None:
        await self._undo()
        await self._begin()


class JoinedCursor:
    """A cursor of the shared connection, read where that lives."""

    def __init__(self, cursor: Cursor, run: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]) -> None:
        self._cursor = cursor
        self._run = run

    @property
    def column_names(self) -> tuple[str, ...]:
        return self._cursor.column_names

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await self._run(lambda: self._cursor.fetch(count))
        return rows

    async def close(self) -> None:
        await self._run(self._cursor.close)


async def _taken(take: Callable[[User], None], user: User) -> None:
    take(user)
