"""SQL-first sessions on the connection and in the transaction of a SQLAlchemy session.

What they run passes through the session's own connection, so its unit of work sees it: who uses the session at once,
which error ended the transaction, which cursor is still being read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar, overload
from weakref import WeakSet

import msgspec
from sqlalchemy.engine import Connection, CursorResult
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import greenlet_spawn

from transept.alchemy.session import Seat, note_live, seat_of, writes
from transept.block import Block
from transept.context import LOOP
from transept.errors import CommitInDoubt, UsageError, inside_a_block
from transept.sql.across import AcrossExecutor
from transept.sql.controls import control_of, read_too_late, refuse_control, statements_of
from transept.sql.core import checked
from transept.sql.faults import Fault, of_asyncpg, of_mysql, of_psycopg, of_sqlite, sql_error
from transept.sql.kinds import kind_of
from transept.sql.link import Cursor
from transept.sql.mysql import NATIVES as MYSQL_NATIVES
from transept.sql.postgres import NATIVES
from transept.sql.prepared import Arguments, prepare
from transept.sql.result import Result
from transept.sql.session import BlockingSQLSession, SQLSession
from transept.sql.statement import Notation, render_many
from transept.sql.values import MYSQL_TYPES, TEXT_TYPES, Json, Table, adapt

__all__ = ["over"]

T = TypeVar("T")

# Without values, a percent sign is one; the count is kept when the cursor is closed; SQLite's columns keep their names.
OPTIONS: Any = {"no_parameters": True, "preserve_rowcount": True, "sqlite_raw_colnames": True}
STREAMING: Any = {**OPTIONS, "stream_results": True}

# SQLAlchemy has told these drivers how JSON is written, and that is as text.
POSTGRES_TYPES = Table({kind: TEXT_TYPES[kind] for kind in (dict, msgspec.Struct, Json)})


class AlchemyDriver(NamedTuple):
    """What a session knows of its driver."""

    notation: Notation
    natives: frozenset[type]
    adapts: Table
    fault_of: Callable[[BaseException], Fault | None]
    tells_ids: bool


SQLITE = AlchemyDriver(Notation("sqlite", own="qmark", out="qmark"), frozenset(), TEXT_TYPES, of_sqlite, True)
MYSQL = AlchemyDriver(
    Notation("mysql", own="format", out="format"),
    MYSQL_NATIVES,
    MYSQL_TYPES,
    of_mysql,
    True,
)
ASYNCPG = AlchemyDriver(
    Notation("postgresql", own="numeric", out="numeric"), NATIVES, POSTGRES_TYPES, of_asyncpg, False
)
PSYCOPG = AlchemyDriver(Notation("postgresql", own="format", out="format"), NATIVES, POSTGRES_TYPES, of_psycopg, False)
DRIVERS = {
    "pysqlite": SQLITE,
    "aiosqlite": SQLITE,
    "asyncpg": ASYNCPG,
    "psycopg": PSYCOPG,
    "psycopg_async": PSYCOPG,
    "pymysql": MYSQL,
    "asyncmy": MYSQL,
}


@overload
def over(session: AsyncSession) -> SQLSession: ...
@overload
def over(session: Session) -> BlockingSQLSession: ...
def over(session: Session | AsyncSession) -> SQLSession | BlockingSQLSession:
    """A SQL-first session on the very connection and transaction of this one. Lives as long as it.

    What the session has pending is flushed before each statement, unless it has no autoflush; objects that it has
    loaded are not refreshed by what SQL changes. Its `commit`, `rollback` and blocks are those of the session.

    Errors of a statement are `SQLError`, with the driver's own error as ``__cause__``, and SQLAlchemy's as
    ``__context__``. What the session itself raises, such as for a flush, is raised as it is. Statements of SQLAlchemy
    run as they are, and their values come as their columns' types make them; what SQL text returns comes as the driver
    gives it to SQLAlchemy.

    Raises:
        UsageError: it is no SQLAlchemy session, or its driver is not known here.
    """
    if isinstance(session, AsyncSession):
        return SQLSession(AlchemyExecutor(session.sync_session, is_async=True))
    if isinstance(session, Session):
        seat = seat_of(session)
        if seat is not None and seat.bridge is not None and seat.bridge.needed():  # an async one, in plain code
            there = AlchemyExecutor(session, is_async=True)
            return BlockingSQLSession(AcrossExecutor(there, seat.bridge, seat.key))
        return BlockingSQLSession(AlchemyExecutor(session, is_async=False))
    raise UsageError(f"over() takes a Session or an AsyncSession of SQLAlchemy; {session!r} is neither.")


class Opened(NamedTuple):
    """A block of the app's own: its transaction or savepoint, and the seat of a unit's session, which knows of it."""

    transaction: SessionTransaction
    block: Block
    seat: Seat | None


class Request(NamedTuple):
    """One statement, ready to be sent: how, the text if it is one, whether it writes, whether it begins or ends."""

    send: Callable[[Connection, Any], CursorResult[Any]]
    text: str | None
    writes: bool
    control: str | None


class AlchemyExecutor:
    """Runs SQL in a SQLAlchemy session: plain blocking code, with one greenlet hop a call if it is async."""

    def __init__(self, session: Session, *, is_async: bool) -> None:
        self._session = session
        self._is_async = is_async
        self._depth = 0
        self._cursors: WeakSet[AlchemyCursor] = WeakSet()
        engine = session.get_bind()
        driver = DRIVERS.get(engine.dialect.driver)
        if driver is None:
            raise UsageError(
                f"over() knows the drivers {', '.join(DRIVERS)}; this session has {engine.dialect.driver!r}."
            )
        self._driver = driver
        self._name = engine.engine.url.database or engine.dialect.name

    @property
    def database(self) -> AlchemyDriver:
        return self._driver

    async def execute(self, sql: Any, arguments: Arguments) -> Result:
        request = self._request(sql, arguments)
        if request.control is not None:
            await (self.begin() if request.control == "begin" else self.app_ends(commit=request.control == "commit"))
            return Result((), (), 0)

        def work(connection: Connection) -> Result:
            result = request.send(connection, OPTIONS)
            if result.returns_rows:
                return Result(tuple(result.keys()), result.all(), result.rowcount, None, self._driver.natives)
            return Result((), (), result.rowcount, (result.lastrowid or None) if self._driver.tells_ids else None)

        return await self.run(work, request.text, writes=request.writes)

    async def execute_many(self, sql: Any, sets: Sequence[Arguments]) -> Result:
        if not sets:
            return Result((), (), 0)
        statement: Any = sql
        text: str | None = None
        values: Any = sets
        if isinstance(sql, str):
            text, rendered = render_many(sql, sets, self._driver.notation)
            values = [tuple(adapt(one, self._driver.adapts)) for one in rendered]
            self._refuse_control(text)
        else:
            for one in sets:
                checked(sql, one)

        def work(connection: Connection) -> Result:
            if text is None:
                done = connection.execute(statement, values, execution_options=OPTIONS)
            else:
                done = connection.exec_driver_sql(text, values, OPTIONS)
            done.close()
            return Result((), (), done.rowcount)

        return await self.run(work, text, writes=True)

    async def execute_script(self, script: str) -> None:
        statements = statements_of(script, self._driver.notation.dialect)

        def work(connection: Connection) -> None:
            for statement in statements:
                connection.exec_driver_sql(statement, None, OPTIONS).close()

        await self.run(work, script, writes=True)

    async def open_cursor(self, reader: Any, sql: Any, arguments: Arguments) -> AlchemyCursor:
        """A cursor of the server, as long as `reader` lives and the transaction is open."""
        request = self._request(sql, arguments)
        if request.text is not None:
            self._refuse_control(request.text)

        def work(connection: Connection) -> AlchemyCursor:
            result = request.send(connection, STREAMING)
            seat = seat_of(self._session)
            if seat is not None:
                note_live(result, seat)
            return AlchemyCursor(self, result)

        cursor = await self.run(work, request.text, writes=request.writes)
        self._cursors.add(cursor)
        return cursor

    async def fetch(self, cursor: Cursor, count: int) -> Sequence[Sequence[Any]]:
        return await cursor.fetch(count)

    async def close_cursor(self, cursor: Cursor) -> None:
        await cursor.close()

    async def begin(self) -> None:
        await self.run(lambda connection: None, writes=False)

    async def app_ends(self, *, commit: bool) -> None:
        if self._depth:
            raise inside_a_block(f"session.{'commit' if commit else 'rollback'}() on database {self.key!r}")
        await self._hop_shielded(self._commit if commit else self._rollback)

    async def enter_block(self) -> Opened:
        """A block of the app's own begins: a transaction, or a savepoint where one is open or a block is around it."""
        opened = await self.hop(self._enter)
        self._depth += 1
        return opened

    async def leave_block(self, block: Opened, error: BaseException | None) -> None:
        """It ends: kept if there is no error, else undone."""
        self._depth -= 1
        if block.seat is not None:
            block.seat.hooks.blocks.remove(block.block)
        await self._hop_shielded(lambda: self._leave(block, error))

    # How.

    @property
    def key(self) -> str:
        seat = seat_of(self._session)
        return self._name if seat is None else seat.key

    async def run(self, work: Callable[[Connection], T], sql: str | None = None, *, writes: bool) -> T:
        """Do something with the session's connection, in its turn, after what it has pending."""

        def flushed() -> T:
            session = self._session
            session._autoflush()  # as its own statements do: not while it is flushing
            seat = seat_of(session)
            if seat is not None:
                seat.wrote = seat.wrote or writes
            try:
                return work(session.connection())
            except Exception as error:
                self.fail(error, sql)

        return await self.hop(lambda: self.in_turn(flushed))

    def in_turn(self, work: Callable[[], T]) -> T:
        seat = seat_of(self._session)
        if seat is None:
            return work()
        outside = seat.enter()
        try:
            return work()
        finally:
            seat.leave(outside)

    async def hop(self, work: Callable[[], T]) -> T:
        return await greenlet_spawn(work) if self._is_async else work()

    async def _hop_shielded(self, work: Callable[[], None]) -> None:
        """Run this to its end, also where whoever asked for it is cancelled."""
        await (LOOP.shielded(self.hop(work)) if self._is_async else self.hop(work))

    def _refuse_control(self, text: str) -> None:
        dialect = self._driver.notation.dialect
        refuse_control(text, kind_of(text, dialect), dialect)

    def _request(self, sql: Any, arguments: Arguments) -> Request:
        if not isinstance(sql, str):
            checked(sql, arguments)
            return Request(
                lambda connection, options: connection.execute(sql, arguments or None, execution_options=options),
                None,
                writes(sql),
                None,
            )
        text, given, kind = prepare(sql, arguments, self._driver.notation, self._driver.adapts)
        values = tuple(given) or None
        return Request(
            lambda connection, options: connection.exec_driver_sql(text, values, options),
            text,
            not kind.reads,
            control_of(text, kind, self._driver.notation.dialect),
        )

    def fail(self, error: Exception, sql: str | None) -> NoReturn:
        fault, cause = self._fault_of(error)
        if fault is None:
            raise error
        raise sql_error(fault, cause, self.key, sql) from cause

    def _fault_of(self, error: Exception) -> tuple[Fault | None, BaseException]:
        """What an error means, and the driver's own: SQLAlchemy wraps it, once or twice."""
        cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
        while cause is not None:
            fault = self._driver.fault_of(cause)
            if fault is not None:
                return fault, cause
            cause = cause.__cause__
        return None, error

    def _commit(self) -> None:
        self._session.flush()
        self._close_cursors()
        try:
            self._session.commit()
        except Exception as error:
            fault, cause = self._fault_of(error)
            in_doubt = fault is not None and fault.in_doubt
            self._roll_back_after(error, self._session.invalidate if in_doubt else self._session.rollback)
            if in_doubt:
                raise CommitInDoubt(self.key) from cause
            self.fail(error, None)

    def _close_cursors(self) -> None:
        for cursor in list(self._cursors):
            cursor.end()
        self._cursors.clear()

    def _rollback(self) -> None:
        self._close_cursors()
        self._session.rollback()

    def _roll_back_after(self, error: Exception, undo: Callable[[], None]) -> None:
        """An error that is under way comes first."""
        try:
            undo()
        except Exception as failure:
            error.add_note(f"transept: rolling back failed ({failure!r}).")

    def _enter(self) -> Opened:
        def enter() -> Opened:
            session = self._session
            seat = seat_of(session)
            alone = not session.in_transaction() and not (seat is not None and seat.hooks.blocks)
            try:
                made = session.begin() if alone else session.begin_nested()
            except DBAPIError as error:
                self.fail(error, None)
            if seat is None:
                return Opened(made, Block(), None)
            block = Block(seat.hooks.mark(), database=seat.owner)
            seat.savepoints.add(made)
            seat.hooks.blocks.append(block)
            return Opened(made, block, seat)

        return self.in_turn(enter)

    def _leave(self, opened: Opened, error: BaseException | None) -> None:
        made = opened.transaction
        if error is None and not made.is_active:
            made.__exit__(None, None, None)
            raise UsageError(
                f"the transaction of a session.transaction() block on database {self.key!r} ended inside the block: "
                "it was rolled back or closed there, an error of a flush was caught there, or its unit of work ended."
            )
        try:
            if error is None:
                self.in_turn(lambda: self._keep(made, opened.seat))
                return
        except Exception as failure:
            self._undo(opened, failure)
            self.fail(failure, None)
        self._undo(opened, error)

    def _undo(self, opened: Opened, error: BaseException) -> None:
        """An error that is under way comes first. What cannot be undone alone is not kept with the rest either."""
        made, block, seat = opened
        what = f"a session.transaction() block on database {self.key!r}"
        if seat is not None:
            seat.hooks.drop_since(block.mark)
            if made not in seat.savepoints and self._session.in_transaction():
                seat.hooks.failed_block = f"the transaction of {what} ended inside it"
        is_all = made.parent is None
        if is_all:
            self._close_cursors()
        try:
            made.__exit__(type(error), error, None)
        except Exception as failure:
            if seat is None:
                raise
            error.add_note(f"transept: while undoing {what}: {failure!r}")
            if not is_all:
                seat.hooks.failed_block = seat.hooks.failed_block or f"{what} could not be undone"

    def _keep(self, made: SessionTransaction, seat: Seat | None) -> None:
        """A savepoint whose RELEASE has failed could not be rolled back to any more."""
        self._session.flush()
        if seat is not None:
            seat.check_transactions()
        made.commit()


class AlchemyCursor:
    """A result that is still being read."""

    def __init__(self, executor: AlchemyExecutor, result: CursorResult[Any]) -> None:
        self._executor = executor
        self._result = result
        self._transaction = result.connection.get_transaction()
        self.column_names = tuple(result.keys()) if result.returns_rows else ()

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        return await self._executor.hop(lambda: self._executor.in_turn(lambda: self._fetch(count)))

    async def close(self) -> None:
        await self._executor.hop(lambda: self._executor.in_turn(self.end))

    def end(self) -> None:
        self._result.close()

    def _fetch(self, count: int) -> Sequence[Sequence[Any]]:
        if self._transaction is None or not self._transaction.is_active:
            raise read_too_late(self._executor.key)
        if not self.column_names:
            return ()
        try:
            rows = self._result.fetchmany(count)
            if len(rows) < count:
                self.end()
        except Exception as error:
            self._executor.fail(error, None)
        return rows
