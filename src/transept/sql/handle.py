"""How a unit of work settles a raw database: begins with the first statement, ends with commit or rollback.

Written once, for both colours: what is awaited belongs to the adapter, and blocks where the driver does.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

from transept._portal import Bridge
from transept.block import Block
from transept.context import LOOP, current_scope
from transept.errors import (
    IN_BLOCK,
    CommitFailed,
    CommitInDoubt,
    ProgrammingError,
    SQLError,
    UsageError,
    inside_a_block,
)
from transept.hooks import Hooks
from transept.sql.across import PlainHandle, plain_handle
from transept.sql.controls import Control, control_of, read_too_late, refuse_control, statements_of
from transept.sql.core import compiled_many
from transept.sql.cursors import OpenCursors
from transept.sql.faults import Fault, sql_error
from transept.sql.kinds import Kind, kind_of
from transept.sql.link import Cursor, Link, Linker
from transept.sql.prepared import Arguments, Prepared, known_statements, prepare
from transept.sql.result import Result
from transept.sql.statement import forgotten, render_many
from transept.sql.values import adapt
from transept.turn import TaskTurn, ThreadTurn

__all__ = ["SQLHandle"]

T = TypeVar("T")
S = TypeVar("S")
C = TypeVar("C")

COMMAND = Kind("SAVEPOINT", returns_rows=False, reads=True, session=False, several=False)

logger = logging.getLogger("transept")


class Opened(NamedTuple):
    """A block of the app's own: the number of its transaction, and its savepoint if it is not all of that."""

    block: Block
    number: int
    savepoint: str | None


class SQLHandle(Generic[S, C]):
    """One raw database's part in a unit of work; who makes it gives it its session and its connection."""

    __slots__ = (
        "_adapts",
        "_app_ended",
        "_beginning",
        "_blocks",
        "_cursors",
        "_database",
        "_ended",
        "_failed",
        "_hooks",
        "_known",
        "_link",
        "_may_write",
        "_number",
        "_open_savepoints",
        "_plain",
        "_savepoints",
        "_turn",
        "_wrote",
        "connection",
        "owner",
        "session",
    )

    def __init__(self, database: Linker, turn: TaskTurn | ThreadTurn, hooks: Hooks, reads_only: bool) -> None:
        self._database = database
        self._adapts = database.adapts
        self._known = known_statements(database.notation)
        self._turn = turn
        self._hooks = hooks
        self._may_write = not reads_only
        self._link: Link | None = None
        self._number = 0  # of the transaction that is open, or was the last
        self._beginning = False
        self._failed: str | None = None
        self._ended = False
        self._blocks: list[Opened] = []
        self._savepoints = 0
        self._open_savepoints: dict[str, int] = {}  # with the number of cursors that were open before it
        self._cursors = OpenCursors()
        self._wrote = False
        self._app_ended: bool | None = None
        self._plain: PlainHandle | None = None
        self.owner: Any = None
        self.session: S
        self.connection: C

    @property
    def database(self) -> Linker:
        return self._database

    # What sessions call.

    async def execute(self, sql: Any, arguments: Arguments) -> Result:
        """Run one statement, in the open transaction or in one that begins with it."""
        known = self._known.get(sql)
        if known is not None and type(arguments) is tuple and len(arguments) == known[0]:
            values: Sequence[Any] = adapt(arguments, self._adapts)
            kind = known[1]
        else:
            sql, values, kind = self._prepared(sql, arguments)
        if kind.session and (what := control_of(sql, kind, self._database.notation.dialect)) is not None:
            return await self._control(what)
        turn = self._turn
        waits = turn.take()
        while waits is not None:
            await waits
            waits = turn.take()
        try:
            link = self._link
            if link is None:
                result = await self._begin((sql, values, kind))
                if result is not None:
                    return result
                link = self._linked()
            elif self._cursors:
                await self._cursors.close_unread()
            try:
                result = await link.run(sql, values, kind)
            except Exception as error:
                await self._fail(error, sql, alone=not values)
            except BaseException:
                self._failed = self._failed or "a statement was cancelled"
                raise
            if not kind.reads:
                self._wrote = True
            return result
        finally:
            turn.leave()

    async def execute_many(self, sql: Any, sets: Sequence[Arguments]) -> Result:
        """Run one statement once for each set of parameters."""
        if not sets:
            return Result((), (), 0)
        if type(sql) is str:
            text, rendered = render_many(sql, sets, self._database.notation)
        else:
            text, rendered = compiled_many(sql, sets, self._database.notation)
        values = [adapt(one, self._adapts) for one in rendered]
        dialect = self._database.notation.dialect
        refuse_control(text, kind_of(text, dialect), dialect)

        async def work(link: Link) -> Result:
            return Result((), (), await link.run_many(text, values))

        return await self.use(work, text)

    async def execute_script(self, script: str) -> None:
        """Run several statements, none of which ends the transaction."""
        statements_of(script, self._database.notation.dialect)
        await self.use(lambda link: link.run_script(script), script)

    async def use(
        self, work: Callable[[Link], Awaitable[T]], sql: str | None = None, *, writes: bool = True, raw: bool = False
    ) -> T:
        """Do something with the connection, in the open transaction or in one that begins now.

        `raw`: by the driver's own means, so its errors are raised as they are.
        """
        await self._take()
        try:
            if self._link is None:
                await self._begin()
            try:
                result = await work(self._linked())
            except Exception as error:
                await self._fail(error, sql, raw=raw)
            except BaseException:
                self._failed = self._failed or "a statement was cancelled"
                raise
            finally:
                if raw:
                    await self._look_after_a_stranger()
            self._wrote = self._wrote or writes
            return result
        finally:
            self._turn.leave()

    async def _look_after_a_stranger(self) -> None:
        """A method of the driver may have ended the transaction; what follows must not be kept as it comes."""
        link = self._link
        if link is not None and not self._ended and not link.still_in_transaction():
            self._ended = True
            self._failed = self._failed or "a method of the driver's connection ended it"
            try:
                await link.begin(self._may_write)
            except Exception:  # nothing can stand in for what is lost: the unit as a whole cannot be kept
                self._hooks.failed_block = self._failed
                await self._shielded(self.invalidate())

    def attribute(self, name: str) -> Any:
        """An attribute of the driver's connection."""
        if self._link is None:
            raise UsageError(f"{name!r} is known once the connection is in use: run a statement, or begin(), first.")
        return getattr(self._link.connection, name)

    async def begin(self) -> None:
        """Begin a transaction now, unless one is open."""
        await self._take()
        try:
            if self._link is None:
                await self._begin()
        finally:
            self._turn.leave()

    async def app_ends(self, *, commit: bool) -> None:
        """The app's own commit or rollback."""
        if self._turn.over() and not commit:
            return
        if (self._open_savepoints or self._blocks) and not self._turn.settling:
            end = "commit" if commit else "rollback"
            raise inside_a_block(f"session.{end}() on database {self._database.key!r}")
        await self._take()
        try:
            await self._shielded(self._end_now(commit))
        finally:
            self._turn.leave()

    async def enter_block(self) -> Opened:
        """A block of the app's own begins: a transaction, or a savepoint where one is open or a block is around it."""
        await self._take()
        try:
            alone = self._link is None and not self._hooks.blocks
            if self._link is None:
                await self._begin()
            opened = Opened(
                Block(self._hooks.mark(), database=self.owner), self._number, None if alone else await self.savepoint()
            )
            self._hooks.blocks.append(opened.block)
            self._blocks.append(opened)
            return opened
        finally:
            self._turn.leave()

    async def leave_block(self, opened: Opened, error: BaseException | None) -> None:
        """It ends: kept if there is no error, else undone."""
        crossed = self._blocks[-1] is not opened
        self._blocks.remove(opened)
        self._hooks.blocks.remove(opened.block)
        if self._link is None or opened.number != self._number:
            self._end_too_late(error)
            return
        await self._take()
        try:
            if crossed:
                await self._shielded(self._end_now(False))
            else:
                await self._shielded(self._end_block(opened, error))
        finally:
            self._turn.leave()
        if crossed:
            self._end_crossed(error)

    # Cursors.

    async def open_cursor(self, reader: Any, sql: Any, arguments: Arguments) -> Cursor:
        """A result that stays with the server, as long as `reader` lives and the transaction is open."""
        text, values, kind = self._prepared(sql, arguments)
        refuse_control(text, kind, self._database.notation.dialect)
        cursor = await self.use(lambda link: link.cursor(text, values), text, writes=not kind.reads)
        self._cursors.add(cursor, reader)
        return cursor

    async def fetch(self, cursor: Cursor, count: int) -> Sequence[Sequence[Any]]:
        """The next rows of an open cursor; it is closed after the last."""
        await self._take()
        try:
            if cursor not in self._cursors:
                raise read_too_late(self._database.key)
            try:
                rows = await cursor.fetch(count)
            except Exception as error:
                await self._fail(error, None)
            except BaseException:
                self._failed = self._failed or "a statement was cancelled"
                raise
            if len(rows) < count:
                await self._cursors.close(cursor)
            return rows
        finally:
            self._turn.leave()

    async def close_cursor(self, cursor: Cursor) -> None:
        if cursor in self._cursors:
            await self._take()
            try:
                await self._cursors.close(cursor)
            finally:
                self._turn.leave()

    # What the unit of work calls.

    def in_transaction(self) -> bool:
        return self._link is not None or self._beginning

    def reading(self) -> bool:
        return self._cursors.being_read()

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
        link = self._linked()
        if self._hooks.failed_block is not None:
            raise CommitFailed(self._database.key, self._hooks.failed_block, IN_BLOCK)
        if self._ended:
            raise CommitFailed(self._database.key, f"an earlier error ended the transaction ({self._failed})")
        if self._failed is not None and (reason := await link.gone()) is not None:
            raise CommitFailed(self._database.key, f"{reason} ({self._failed})")
        await self._cursors.close_all()

    async def commit(self) -> None:
        link = self._linked()
        try:
            await link.commit()
        except BaseException as error:
            fault = self._database.fault_of(error)
            if fault is not None and fault.in_doubt:
                raise CommitInDoubt(self._database.key) from error
            if fault is not None:
                raise sql_error(fault, error, self._database.key, None) from error
            raise
        await self._let_go(link)

    async def rollback(self) -> None:
        link = self._linked()
        await self._cursors.abandon()
        await link.rollback()
        await self._let_go(link)

    async def invalidate(self) -> None:
        link, self._link = self._link, None
        self._forget()
        if link is not None:
            await link.drop()

    async def savepoint(self) -> str:
        self._savepoints += 1
        name = f"transept_{self._savepoints}"
        await self._cursors.close_unread()
        cursors = len(self._cursors)
        await self._command(f"SAVEPOINT {name}")
        self._open_savepoints[name] = cursors
        return name

    async def rollback_to(self, savepoint: str) -> None:
        await self._cursors.abandon(self._open_savepoints.pop(savepoint, 0))
        await self._command(f"ROLLBACK TO SAVEPOINT {savepoint}")
        await self._command(f"RELEASE SAVEPOINT {savepoint}")
        if not self._ended:
            self._failed = None

    async def release_savepoint(self, savepoint: str) -> None:
        await self._command(f"RELEASE SAVEPOINT {savepoint}")
        self._open_savepoints.pop(savepoint, None)

    def end(self, owner: str) -> None:
        self._turn.ended = owner

    def forget(self) -> None:
        """Nothing is kept between statements."""

    def for_plain_code(self, bridge: Bridge) -> PlainHandle:
        """The blocking twins of an async session and connection."""
        if self._plain is None:
            self._plain = plain_handle(self, bridge, self._database.key)
        return self._plain

    # How.

    def _prepared(self, sql: Any, arguments: Arguments) -> Prepared:
        return prepare(sql, arguments, self._database.notation, self._adapts)

    async def _take(self) -> None:
        turn = self._turn
        waits = turn.take()
        while waits is not None:
            await waits
            waits = turn.take()

    async def _begin(self, bare: Prepared | None = None) -> Result | None:
        """Take a connection and begin on it; or the result of a statement that the server took without a transaction.

        A connection that was dead in the pool already is replaced: nothing was done on it yet.
        """
        self._beginning = True
        sql = None if bare is None else bare[0]
        try:
            while True:
                link = await self._connect(sql)
                try:
                    return await self._begin_on(link, bare)
                except BaseException as error:
                    fault = self._database.fault_of(error)
                    await self._put_away(link, fault is None or fault.lost)
                    if fault is None:
                        raise
                    if not fault.lost or link.fresh:
                        raise self._said_no(fault, error, sql, alone=bare is not None and not bare[1]) from error
        finally:
            self._beginning = False

    async def _connect(self, sql: str | None) -> Link:
        try:
            return await self._database.link(_holder())
        except Exception as error:
            fault = self._database.fault_of(error)
            if fault is None:
                raise
            raise sql_error(fault, error, self._database.key, sql) from error

    async def _begin_on(self, link: Link, bare: Prepared | None) -> Result | None:
        if bare is not None and link.runs_bare(bare[2]):
            result = await self._run_bare(link, bare)
            if result is not None:
                return result
        await link.begin(self._may_write)
        self._link = link
        self._number += 1
        return None

    async def _run_bare(self, link: Link, statement: Prepared) -> Result | None:
        """None: the server refused it outside of a transaction."""
        try:
            result = await link.run(*statement)
        except Exception as error:
            fault = self._database.fault_of(error)
            if fault is None or not link.refused_bare(fault):
                raise
            return None
        await self._give_back(link)
        return result

    async def _control(self, what: Control) -> Result:
        """BEGIN, COMMIT and ROLLBACK in the app's own words are its own begin, commit and rollback."""
        if what == "begin":
            await self.begin()
        else:
            await self.app_ends(commit=what == "commit")
        return Result((), (), 0)

    async def _end_now(self, commit: bool) -> None:
        if self._link is None:
            return
        if commit:
            try:
                await self.check()
                await self.commit()
            except Exception as error:
                await self._roll_back_after(error)
                raise
        else:
            await self._roll_back_now()
        self._app_ended = commit

    async def _roll_back_now(self) -> None:
        """What a connection had under way that is lost is rolled back already."""
        try:
            await self.rollback()
        except Exception as error:
            fault = self._database.fault_of(error)
            await self.invalidate()
            if fault is None:
                raise
            if not fault.lost:
                raise sql_error(fault, error, self._database.key, None) from error

    async def _roll_back_after(self, error: Exception) -> None:
        """An error that is under way comes first."""
        if self._link is None:
            return
        try:
            await (self.invalidate() if isinstance(error, CommitInDoubt) else self.rollback())
        except Exception as failure:
            error.add_note(f"transept: rolling back failed ({failure!r}); the connection was dropped.")
            await self.invalidate()

    async def _end_block(self, opened: Opened, error: BaseException | None) -> None:
        if error is None and opened.savepoint is None:
            await self._end_now(True)
        elif error is None and opened.savepoint is not None:
            try:
                await self.release_savepoint(opened.savepoint)
            except Exception as failure:  # such as an error that was swallowed inside: the block is undone alone
                await self._undo_block(opened, failure)
                raise
        elif error is not None:
            await self._undo_block(opened, error)

    async def _undo_block(self, opened: Opened, error: BaseException) -> None:
        self._hooks.drop_since(opened.block.mark)
        try:
            await (self._end_now(False) if opened.savepoint is None else self.rollback_to(opened.savepoint))
        except Exception as failure:  # what left the block comes first; nothing of the transaction can be kept
            error.add_note(f"transept: while undoing the block on database {self._database.key!r}: {failure!r}")
            self._ended = True
            self._failed = self._failed or str(failure)

    def _end_crossed(self, error: BaseException | None) -> None:
        """A block ended before one that began inside it: they are two tasks', and nobody knows whose work is whose."""
        what = f"two session.transaction() blocks on database {self._database.key!r} were crossed"
        self._hooks.failed_block = what
        if error is None:
            raise UsageError(
                f"{what}: one ended before another that began inside it, so nothing was kept. Give concurrent work a "
                "unit of its own."
            )

    def _end_too_late(self, error: BaseException | None) -> None:
        """The transaction of a block ended inside it."""
        what = f"the transaction of a session.transaction() block on database {self._database.key!r} ended inside it"
        if error is None:
            raise UsageError(f"{what}: the response started there, or its unit of work ended.")
        if self._link is not None:
            self._hooks.failed_block = what

    async def _command(self, sql: str) -> None:
        try:
            await self._linked().run(sql, (), COMMAND)
        except Exception as error:
            await self._fail(error, sql)

    async def _fail(self, error: Exception, sql: str | None, *, raw: bool = False, alone: bool = False) -> NoReturn:
        """Raise what stands for an error of the driver, and take note of what it means for the transaction.

        `alone`: the statement was given no values.
        """
        fault = self._database.fault_of(error)
        if not self._ended:
            self._failed = str(error).strip().split("\n")[0] or type(error).__name__
            if fault is not None and self._link is not None:
                self._ended = fault.lost or await self._link.ended_by(fault)
        if fault is None or raw:
            raise error
        raise self._said_no(fault, error, sql, alone=alone) from error

    def _said_no(self, fault: Fault, error: BaseException, sql: str | None, *, alone: bool = False) -> SQLError:
        made = sql_error(fault, error, self._database.key, sql)
        if alone and sql is not None and isinstance(made, ProgrammingError):
            hint = forgotten(sql, self._database.notation.dialect)
            if hint is not None:
                made.add_note(f"transept: {hint}.")
        return made

    async def _let_go(self, link: Link) -> None:
        self._link = None
        self._forget()
        await self._give_back(link)

    async def _give_back(self, link: Link, *, lost: bool = False) -> None:
        try:
            await (link.drop() if lost else link.release())
        except Exception:
            logger.warning("a connection to %r could not be given back", self._database.key, exc_info=True)

    async def _put_away(self, link: Link, lost: bool) -> None:
        await self._shielded(self._give_back(link, lost=lost))

    async def _shielded(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this to its end, also where whoever asked for it is cancelled."""
        await (LOOP.shielded(work) if isinstance(self._turn, TaskTurn) else work)

    def _forget(self) -> None:
        self._failed = None
        self._ended = False
        self._wrote = False
        self._open_savepoints.clear()
        self._cursors.forget()

    def _linked(self) -> Link:
        if self._link is None:
            raise RuntimeError("no transaction is open")
        return self._link


def _holder() -> str:
    """Who takes a connection, for those who wait for one."""
    scope = current_scope()
    return "a session of its own" if scope is None else scope.describe()
