"""Sessions of the current unit of work, from anywhere in the code, and sessions of none.

`database` is the database itself (a `DBConnect`, a `SQLAlchemyAsyncConfig`, ...), its bind key or session key, or
nothing where the unit knows only one or a default.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, get_args, overload

from transept.context import LOOP, NamedScope, current_unit
from transept.database import Database, Gives
from transept.errors import IN_BLOCK, CommitFailed, UsageError, unknown_value
from transept.unit import Block, Unit

__all__ = [
    "CurrentTransaction",
    "atomic_db_session",
    "close_db_session",
    "commit_db_session",
    "db_session",
    "get_db_session_from_context",
    "new_non_ctx_atomic_session",
    "new_non_ctx_session",
    "pop_db_session_from_context",
    "put_db_session_to_context",
    "rollback_db_session",
    "sync_db_session",
]

S = TypeVar("S")

CurrentTransaction = Literal["commit", "rollback", "append", "raise"]
CHOICES: tuple[str, ...] = get_args(CurrentTransaction)


@overload
async def db_session(database: Gives[S]) -> S: ...
@overload
async def db_session(database: str | None = None) -> Any: ...
async def db_session(database: Any = None) -> Any:
    """The current unit's session of this database: the same object wherever in the request it is asked for.

    No connection is taken: the first statement does. The unit commits or rolls back, and ends the session.

    Raises:
        OutsideScope: there is no unit here, or it is over.
        UsageError: no database is known by name here.
    """
    return await current_unit().prepared(database)


@overload
def sync_db_session(database: Gives[S]) -> S: ...
@overload
def sync_db_session(database: str | None = None) -> Any: ...
def sync_db_session(database: Any = None) -> Any:
    """`db_session` for code that cannot await: a plain function, with a sync database."""
    return current_unit().session(database)


async def commit_db_session(database: Database | str | None = None) -> None:
    """Commit this database now, whatever the response will be; the next statement begins a new transaction.

    Does nothing if nothing is open. Hooks run when no other database has anything open.

    Raises:
        UsageError: inside a block, whose end decides.
        CommitFailed: the unit is doomed, or the transaction is gone.
    """
    unit = current_unit()
    await unit.commit(unit.database(database))


async def rollback_db_session(database: Database | str | None = None) -> None:
    """Roll this database back now; the next statement begins a new transaction. Does nothing if nothing is open."""
    unit = current_unit()
    await unit.rollback(unit.database(database))


async def close_db_session(database: Database | str | None = None) -> None:
    """Give this database's connection back now, and go on later: the next statement takes one again.

    What was not committed is rolled back, and objects that were read are detached. The session stays the same.
    """
    unit = current_unit()
    await unit.let_go(unit.database(database))


class atomic_db_session(Generic[S]):  # noqa: N801 - reads as the function that it is called like
    """``async with atomic_db_session(database) as session``: commits at the end of the block, rolls back on an error.

    `current_transaction` says what becomes of a transaction that is open already: it is committed first
    (``"commit"``), rolled back first (``"rollback"``), becomes a part of the block (``"append"``), or is refused
    with `UsageError` (``"raise"``).

    Inside another block over this database (this, `transaction()`, `unit_of_work()`) it is a savepoint of that one,
    whatever `current_transaction` says: it never commits its caller's work.
    """

    @overload
    def __init__(self, database: Gives[S], current_transaction: CurrentTransaction = ...) -> None: ...
    @overload
    def __init__(
        self: atomic_db_session[Any], database: str | None = None, current_transaction: CurrentTransaction = ...
    ) -> None: ...
    def __init__(self, database: Any = None, current_transaction: CurrentTransaction = "commit") -> None:
        if current_transaction not in CHOICES:
            raise unknown_value("current_transaction", current_transaction, CHOICES)
        self._asked_for: Any = database
        self._current = current_transaction
        self._entered: tuple[Unit, Database, Block] | None = None
        self._nested = False

    async def __aenter__(self) -> S:
        if self._entered is not None:
            raise RuntimeError("an atomic_db_session() serves one block: make one for each.")
        unit = current_unit()
        database = unit.database(self._asked_for)
        session: S = await unit.prepared(self._asked_for)
        self._nested = unit.in_block(database)
        if not self._nested:
            await self._end_what_is_open(unit, database)
        block = unit.new_block(database=database)
        if self._nested:
            await unit.enter_block(block)
        self._entered = (unit, database, block)
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._entered is None:
            raise RuntimeError("this atomic_db_session() was never entered.")
        unit, database, block = self._entered
        unit.end_block(block)
        if self._nested:
            await unit.host.shielded(unit.leave_block(block, error), lambda: unit.cancel_block(block))
            return
        if error is None and block.failed is None:
            await unit.commit(database)
            return
        try:
            await unit.rollback(database)
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"transept: while rolling back database {database.key!r}: {failure!r}")
        if error is None and block.failed is not None:
            raise CommitFailed(database.key, block.failed, IN_BLOCK)

    async def _end_what_is_open(self, unit: Unit, database: Database) -> None:
        if not unit.has_open(database):
            return
        if self._current == "raise":
            raise UsageError(
                f"atomic_db_session(current_transaction='raise'): a transaction is open on database {database.key!r} "
                "already: commit it first, or choose 'commit', 'rollback' or 'append'."
            )
        if self._current == "commit":
            await unit.commit(database)
        elif self._current == "rollback":
            await unit.rollback(database)


@overload
def new_non_ctx_session(database: Gives[S]) -> AbstractAsyncContextManager[S]: ...
@overload
def new_non_ctx_session(database: str | None = None) -> AbstractAsyncContextManager[Any]: ...
def new_non_ctx_session(database: Any = None) -> Any:
    """``async with new_non_ctx_session(database) as session``: a new session that belongs to no unit around it.

    Commit it yourself; what is not committed at the end of the block is rolled back. For concurrent work.
    """
    return _alone(database, keep=False)


@overload
def new_non_ctx_atomic_session(database: Gives[S]) -> AbstractAsyncContextManager[S]: ...
@overload
def new_non_ctx_atomic_session(database: str | None = None) -> AbstractAsyncContextManager[Any]: ...
def new_non_ctx_atomic_session(database: Any = None) -> Any:
    """As `new_non_ctx_session`, and committed at a clean end of the block."""
    return _alone(database, keep=True)


@asynccontextmanager
async def _alone(database: Any, *, keep: bool) -> AsyncIterator[Any]:
    scope = NamedScope(LOOP, "a session outside of the context")
    unit = scope.open()
    try:
        yield await unit.prepared(database)
    except BaseException as error:
        try:
            await unit.close()
        except Exception as failure:
            error.add_note(f"transept: while closing {unit.name}: {failure!r}")
        raise
    await (unit.finish(_always) if keep else unit.close())


def get_db_session_from_context(database: Database | str | None = None) -> Any:
    """The current unit's session of this database if it has been asked for already, else None."""
    unit = current_unit()
    return unit.opened(unit.database(database))


def put_db_session_to_context(database: Database, session: Any) -> None:
    """Make a session that you made the current unit's session of this database. The unit settles and ends it.

    Raises:
        UsageError: it has one already, or this is no session of it.
    """
    if not hasattr(database, "policy"):
        raise UsageError(
            f"put_db_session_to_context(): {database!r} is no database: pass the database itself (such as a DBConnect) "
            "first, then the session."
        )
    current_unit().adopt(database, session)


def pop_db_session_from_context(database: Database | str | None = None) -> Any:
    """Take this database's session out of the current unit: from now on it is yours. None if there is none."""
    unit = current_unit()
    return unit.give_up(unit.database(database))


def _always(database: Database | None) -> bool:
    return True
