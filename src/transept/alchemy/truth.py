"""Whether a transaction is still what the session believes it to be.

Rule 1: PostgreSQL aborts a transaction at its first error and answers COMMIT with ROLLBACK; psycopg knows it exactly
and for free, asyncpg is asked, and only after an error that no savepoint undid.
Rule 2: MySQL and MariaDB end the transaction at 1213 (and a few kin), at 1205 if they are set to, and go on in a new
one; SQLite ends it at FULL, IOERR, NOMEM, INTERRUPT and OR ROLLBACK. No savepoint brings it back, and one that is
gone tells that its transaction is. Other errors undo their statement alone.
Rule 3: a COMMIT that the server answered with an error failed; one that got no answer is in doubt. What was raised
before the driver was told to commit, such as by a listener of the app's, is never in doubt.

Errors are told apart by code, never by class or text. What the servers do was seen on PostgreSQL 15 and 18, MariaDB
10.11, MySQL 9.7 and SQLite 3.40.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.exc import DBAPIError

from transept.alchemy.engine import end_dropped_transactions

__all__ = ["began", "in_doubt", "joined", "may_be_gone", "watch", "why_gone"]

MARK = "transept_error"
KNOW_THEMSELVES = frozenset({"psycopg", "psycopg_async", "psycopg2", "psycopg2cffi"})
IN_ERROR = 3  # libpq's PQTRANS_INERROR, in psycopg and psycopg2

# Server errors that end the whole transaction. 1213 deadlock (and Galera's certification failure), 1614 its XA kin,
# 1020 a changed record under innodb_snapshot_isolation, 1180 an error while committing.
MYSQL_ENDS = frozenset({1213, 1614, 1020, 1180})
MYSQL_LOCK_WAIT = 1205
MYSQL_NO_SUCH_SAVEPOINT = 1305  # nor function, nor procedure
OF_OUR_SAVEPOINT = re.compile(r"(ROLLBACK TO|RELEASE) SAVEPOINT sa_savepoint_\d+$")  # as SQLAlchemy names them
MYSQL_GONE_BEFORE_SENT = frozenset({0, 2006})

_watched: WeakSet[Engine] = WeakSet()
_unanswered: WeakSet[Connection] = WeakSet()


class Mark:
    """An error in the open transaction: what it said, and whether it surely ended the transaction, or may have."""

    __slots__ = ("ended", "lock_wait", "text")

    def __init__(self, text: str, *, ended: bool = False, lock_wait: bool = False) -> None:
        self.text = text
        self.ended = ended
        self.lock_wait = lock_wait

    @property
    def stays(self) -> bool:
        """Whether no savepoint undoes it, and no lesser error takes its place."""
        return self.ended or self.lock_wait


def watch(engine: Engine) -> None:
    """Note the errors of this engine's transactions. Listens only; changes nothing but connections that are dropped.

    A listener to anything else of an engine would make each statement, BEGIN and COMMIT of it dearer.
    """
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "handle_error", _note_error)
        end_dropped_transactions(engine)


def began(connection: Connection) -> None:
    """A transaction begins on this connection: what was noted of an earlier one is void.

    On an engine of the app's own, Python's sqlite3 may wait with BEGIN for the first write.
    """
    connection.info.pop(MARK, None)
    if connection.dialect.name == "sqlite" and not _driver(connection).in_transaction:
        event.listen(connection, "savepoint", _begin_really)


def joined(connection: Connection) -> None:
    """This connection's transaction began unwatched: PostgreSQL is to be asked what became of it."""
    if connection.dialect.name == "postgresql":
        connection.info.setdefault(MARK, Mark("before its session was put here"))


def may_be_gone(connection: Connection) -> bool:
    """Whether `why_gone` has anything to look at. No I/O."""
    return connection.invalidated or connection.dialect.driver in KNOW_THEMSELVES or MARK in connection.info


def why_gone(connection: Connection) -> str | None:
    """Why COMMIT would not keep this connection's transaction; None when it would. Asks the server only if it must."""
    if not may_be_gone(connection):
        return None
    if connection.invalidated:
        return "the connection was lost"
    mark: Mark | None = connection.info.get(MARK)
    dialect = connection.dialect.name
    if dialect == "postgresql":
        return _why_gone_postgresql(connection, mark)
    if mark is None:
        return None
    if mark.ended or (dialect in ("mysql", "mariadb") and mark.lock_wait and _rolls_back_on_timeout(connection)):
        return f"an earlier error ended the transaction ({mark.text})"
    return None


def in_doubt(connection: Connection) -> bool:
    """Whether a COMMIT that failed on this connection may have been carried out all the same.

    SQLAlchemy leaves a root transaction there, inactive, only after a COMMIT that failed.
    """
    transaction = connection.get_transaction()
    return transaction is not None and not transaction.is_active and connection in _unanswered


def _got_no_answer(dialect: str, context: ExceptionContext) -> bool:
    original: Any = context.original_exception
    if context.sqlalchemy_exception is None:
        return isinstance(original, (OSError, EOFError, TimeoutError, asyncio.CancelledError))
    if dialect == "postgresql":
        code = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
        never_sent = code is None and type(original).__name__ == "InterfaceError"
        return not never_sent and (code is None or code.startswith("08"))
    if dialect in ("mysql", "mariadb"):
        number = _mysql_number(original)
        return number not in MYSQL_GONE_BEFORE_SENT and (number is None or 2000 <= number < 3000)
    return False


def _why_gone_postgresql(connection: Connection, mark: Mark | None) -> str | None:
    status = getattr(getattr(_driver(connection), "info", None), "transaction_status", None)
    text = f"an earlier error aborted the transaction ({mark.text})" if mark else "an earlier error aborted it"
    if status is not None:
        return text if status == IN_ERROR else None
    if mark is None:
        return None
    try:
        connection.exec_driver_sql("SELECT 1")
    except DBAPIError:
        return text
    connection.info.pop(MARK, None)
    return None


def _rolls_back_on_timeout(connection: Connection) -> bool:
    return bool(connection.exec_driver_sql("SELECT @@innodb_rollback_on_timeout").scalar())


def _note_error(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None or context.is_pre_ping:
        return
    dialect = connection.dialect.name
    if context.statement is None and _got_no_answer(dialect, context):
        _unanswered.add(connection)
    if connection.invalidated:
        return
    original: Any = context.original_exception
    mark = Mark(str(original).strip().split("\n")[0] or type(original).__name__)
    if dialect in ("mysql", "mariadb"):
        number = _mysql_number(original)
        mark.ended, mark.lock_wait = _mysql_ended(number, context.statement), number == MYSQL_LOCK_WAIT
    elif dialect == "sqlite":
        mark.ended = _sqlite_ended(connection, original)
    earlier = connection.info.get(MARK)
    if earlier is None or not earlier.stays or (mark.ended and not earlier.ended):
        connection.info[MARK] = mark
        event.listen(connection, "rollback_savepoint", _note_undone)


def _begin_really(connection: Connection, name: str) -> None:
    """SQLite takes a savepoint outside of a transaction for one, and its release would be a COMMIT."""
    if not _driver(connection).in_transaction:
        _begin_sqlite(connection)


def _note_undone(connection: Connection, name: str, context: None) -> None:
    """Sent before ROLLBACK TO; a failure there is noted anew."""
    mark = connection.info.get(MARK)
    if mark is not None and not mark.stays:
        del connection.info[MARK]


def _sqlite_ended(connection: Connection, original: Any) -> bool:
    """Whether SQLite dropped the transaction. What follows would autocommit: a new one is begun, to be rolled back."""
    code = getattr(original, "sqlite_errorcode", None)
    if code is None or code & 0xFF not in (5, 7, 9, 10, 13, 19) or _driver(connection).in_transaction:
        return False
    _begin_sqlite(connection)
    return True


def _begin_sqlite(connection: Connection) -> None:
    cursor = connection.connection.cursor()
    cursor.execute("BEGIN")
    cursor.close()


def _driver(connection: Connection) -> Any:
    return connection.connection.driver_connection


def _mysql_ended(number: int | None, statement: str | None) -> bool:
    of_savepoint = number == MYSQL_NO_SUCH_SAVEPOINT and OF_OUR_SAVEPOINT.match(statement or "") is not None
    return of_savepoint or number in MYSQL_ENDS


def _mysql_number(original: Any) -> int | None:
    arguments = getattr(original, "args", ())
    return arguments[0] if arguments and isinstance(arguments[0], int) else None
