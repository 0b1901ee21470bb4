"""The session that talks SQL to a driver, and how a unit of work settles it; written once, for both colours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transept._bridge import run_now
from transept.errors import CommitFailed, inside_a_block
from transept.turn import TaskTurn, ThreadTurn

logger = logging.getLogger("transept")

__all__ = ["BlockingSQLSession", "Link", "Linker", "Result", "SQLHandle", "SQLSession"]

Parameters = Sequence[Any] | Mapping[str, Any]

READS = re.compile(r"\s*(select|show|values|explain|table)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Result:
    """The rows of one statement, in memory. Iterates over, and has the length of, the rows as dicts."""

    column_names: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    rows_affected: int

    def all(self) -> list[dict[str, Any]]:
        """Every row, as a dict by column name."""
        return [dict(zip(self.column_names, row, strict=True)) for row in self.rows]

    def scalar(self) -> Any:
        """The first column of the first row; None if there is no row."""
        return self.rows[0][0] if self.rows else None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.rows)


class Link(Protocol):
    """A connection in use: what an adapter does for one transaction. Awaits only its own driver."""

    async def begin(self, may_write: bool) -> None: ...

    async def run(self, sql: str, parameters: Parameters) -> Result: ...

    async def gone(self) -> str | None:
        """Why COMMIT would keep nothing, after an error was raised by `run`; None if it would."""
        ...

    async def commit(self) -> None:
        """Raises the driver's error, `CommitFailed` or `CommitInDoubt`."""
        ...

    async def rollback(self) -> None: ...

    async def release(self) -> None:
        """Give the connection back, between transactions."""
        ...

    async def drop(self) -> None:
        """Close the connection, whatever state it is in."""
        ...


class Linker(Protocol):
    """What takes a connection for a handle."""

    @property
    def key(self) -> str: ...

    async def link(self) -> Link: ...


class SQLHandle:
    """One database's part in a unit of work: begins with the first statement, ends with commit or rollback."""

    def __init__(self, database: Linker, turn: TaskTurn | ThreadTurn, reads_only: bool) -> None:
        self._database = database
        self._turn = turn
        self._may_write = not reads_only
        self._link: Link | None = None
        self._beginning = False
        self._failed: str | None = None
        self._savepoints = 0
        self._open_savepoints: set[str] = set()
        self._wrote = False
        self._app_ended: bool | None = None
        self.session: Any = SQLSession(self) if isinstance(turn, TaskTurn) else BlockingSQLSession(self)

    async def execute(self, sql: str, parameters: Parameters) -> Result:
        await self._take()
        try:
            link = self._link or await self._begin()
            try:
                result = await link.run(sql, parameters)
            except Exception as error:
                self._failed = str(error).strip().split("\n")[0]
                raise
            self._wrote = self._wrote or READS.match(sql) is None
            return result
        finally:
            self._turn.leave()

    async def app_ends(self, *, commit: bool) -> None:
        """The app's own commit or rollback."""
        if self._turn.over() and not commit:
            return
        if self._open_savepoints and not self._turn.settling:
            end = "commit" if commit else "rollback"
            raise inside_a_block(f"session.{end}() on database {self._database.key!r}")
        await self._take()
        try:
            if self._link is not None:
                if commit:
                    await self.check()
                await (self.commit() if commit else self.rollback())
                self._app_ended = commit
        finally:
            self._turn.leave()

    def in_transaction(self) -> bool:
        return self._link is not None or self._beginning

    def reading(self) -> bool:
        return False

    def wrote(self) -> bool:
        return self._wrote

    def app_ended(self) -> bool | None:
        return self._app_ended

    def hold_now(self) -> bool:
        return self._turn.hold_now()

    async def hold(self) -> None:
        await self._turn.hold()

    def release(self) -> None:
        self._turn.release()

    async def check(self) -> None:
        if self._failed is not None and (reason := await self._linked().gone()) is not None:
            raise CommitFailed(self._database.key, f"{reason} ({self._failed})")

    async def commit(self) -> None:
        await self._linked().commit()
        await self._let_go()

    async def rollback(self) -> None:
        await self._linked().rollback()
        await self._let_go()

    async def invalidate(self) -> None:
        link, self._link = self._link, None
        self._forget()
        if link is not None:
            await link.drop()

    async def savepoint(self) -> str:
        self._savepoints += 1
        name = f"transept_{self._savepoints}"
        await self._linked().run(f"SAVEPOINT {name}", ())
        self._open_savepoints.add(name)
        return name

    async def rollback_to(self, savepoint: str) -> None:
        link = self._linked()
        self._open_savepoints.discard(savepoint)
        await link.run(f"ROLLBACK TO SAVEPOINT {savepoint}", ())
        await link.run(f"RELEASE SAVEPOINT {savepoint}", ())
        self._failed = None

    async def release_savepoint(self, savepoint: str) -> None:
        await self._linked().run(f"RELEASE SAVEPOINT {savepoint}", ())
        self._open_savepoints.discard(savepoint)

    def end(self, owner: str) -> None:
        self._turn.ended = owner

    def forget(self) -> None:
        """Nothing is kept between statements."""

    async def _take(self) -> None:
        if isinstance(self._turn, TaskTurn):
            while (settled := self._turn.take()) is not None:
                await settled
        else:
            self._turn.take()

    async def _begin(self) -> Link:
        self._beginning = True
        try:
            link = await self._database.link()
            try:
                await link.begin(self._may_write)
            except BaseException:
                await link.drop()
                raise
            self._link = link
        finally:
            self._beginning = False
        return link

    async def _let_go(self) -> None:
        link, self._link = self._linked(), None
        self._forget()
        try:
            await link.release()
        except Exception:
            logger.warning("a connection to %r could not be given back", self._database.key, exc_info=True)

    def _forget(self) -> None:
        self._failed = None
        self._wrote = False
        self._open_savepoints.clear()

    def _linked(self) -> Link:
        if self._link is None:
            raise RuntimeError("no transaction is open")
        return self._link


class SQLSession:
    """An async SQL-first session. Lives as long as its unit of work; takes a connection with its first statement."""

    def __init__(self, handle: SQLHandle) -> None:
        self._handle = handle

    async def execute(self, sql: str, *parameters: Any) -> Result:
        """Run one statement. Parameters one by one, or a single tuple, list or mapping of them."""
        return await self._handle.execute(sql, _parameters(parameters))

    async def select_value(self, sql: str, *parameters: Any) -> Any:
        """The first column of the first row; None if there is no row."""
        return (await self.execute(sql, *parameters)).scalar()

    async def commit(self) -> None:
        """Commit now, whatever the response will be. The next statement begins anew."""
        await self._handle.app_ends(commit=True)

    async def rollback(self) -> None:
        """Roll back now. The next statement begins anew."""
        await self._handle.app_ends(commit=False)


class BlockingSQLSession:
    """The blocking twin of `SQLSession`."""

    def __init__(self, handle: SQLHandle) -> None:
        self._handle = handle

    def execute(self, sql: str, *parameters: Any) -> Result:
        """Run one statement. Parameters one by one, or a single tuple, list or mapping of them."""
        return run_now(self._handle.execute(sql, _parameters(parameters)))

    def select_value(self, sql: str, *parameters: Any) -> Any:
        """The first column of the first row; None if there is no row."""
        return self.execute(sql, *parameters).scalar()

    def commit(self) -> None:
        """Commit now, whatever the response will be. The next statement begins anew."""
        run_now(self._handle.app_ends(commit=True))

    def rollback(self) -> None:
        """Roll back now. The next statement begins anew."""
        run_now(self._handle.app_ends(commit=False))


def _parameters(given: tuple[Any, ...]) -> Parameters:
    if len(given) == 1 and isinstance(given[0], (tuple, list, Mapping)):
        alone: Parameters = given[0]
        return alone
    return given
