"""Every error of Transept, in two families: you used it wrong, and the database said no.

Facts are attributes; ``str()`` says what happened and then what to do. Errors of SQLAlchemy are not replaced: a COMMIT
that violates a constraint raises SQLAlchemy's ``IntegrityError``, with a note. The errors of raw drivers, of which each
has classes of its own, are raised as one family, `SQLError`, with the driver's error as ``__cause__``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

__all__ = [
    "BlockingCallWarning",
    "CheckViolationError",
    "CommitFailed",
    "CommitInDoubt",
    "ConcurrentUseError",
    "ContextAlreadyInitiatedError",
    "ContextNotInitiatedError",
    "DataError",
    "DatabaseSaidNo",
    "DatabaseUnavailable",
    "DeadlockError",
    "ForeignKeyViolationError",
    "ImproperConfigurationError",
    "IntegrityError",
    "LockTimeoutError",
    "LoopTimeout",
    "MultipleResultsFoundError",
    "NotFoundError",
    "NotNullViolationError",
    "OpenCursorError",
    "OperationCancelledError",
    "OperationalError",
    "OutsideScope",
    "ParameterError",
    "PartlyCommitted",
    "PoolBusyOnLoop",
    "PoolTimeout",
    "ProgrammingError",
    "SQLError",
    "SerializationConflictError",
    "TranseptError",
    "UniqueViolationError",
    "UsageError",
]


class TranseptError(Exception):
    """The root of all errors that Transept raises itself."""


class UsageError(TranseptError):
    """Transept was used in a way that cannot work; the code has to change."""


class ImproperConfigurationError(UsageError):
    """A setting or an argument is wrong. Raised as early as it can be known."""


class OutsideScope(UsageError):  # noqa: N818 - the name is part of the public vocabulary
    """A session or a unit of work was asked for, or used, where there is none."""


ContextNotInitiatedError = OutsideScope
"""`OutsideScope`, by the name that it has where sessions are reached through a context variable."""


class ContextAlreadyInitiatedError(UsageError):
    """A context for `db_session` was begun where there is one."""


class ConcurrentUseError(UsageError):
    """Two tasks (or threads) used one session at the same time.

    ``user`` is who came second, ``holder`` who was using the session.
    """

    def __init__(self, user: str, holder: str) -> None:
        super().__init__(user, holder)
        self.user = user
        self.holder = holder

    def __str__(self) -> str:
        return (
            f"{self.user} used a session while {self.holder} is using it. A session has one user at a time: "
            "await one call after the other, or give concurrent work a unit of its own."
        )


class OpenCursorError(UsageError):
    """A result was still being read from the database when the response started."""

    def __init__(self, database: str) -> None:
        super().__init__(database)
        self.database = database

    def __str__(self) -> str:
        return (
            f"a cursor on database {self.database!r} is still open when the response starts, and its transaction ends "
            "there: open it inside the generator that streams the body, read it to its end before answering, or "
            "configure this database with keep_transaction_for_body=True."
        )


class PoolBusyOnLoop(UsageError):  # noqa: N818 - says what is so, as the rest of the family does
    """A blocking session needed a pool slot on the event loop's thread, and none was free.

    Waiting there would stop the tasks that hold the slots, so nothing waits.
    """

    def __init__(self, in_use: int) -> None:
        super().__init__(in_use)
        self.in_use = in_use

    def __str__(self) -> str:
        return (
            f"all {self.in_use} connections of the pool are in use, and this blocking session runs on the event "
            "loop's thread, where waiting for one would stop those that hold them. Use an async database, or make "
            "the endpoint a plain `def` that runs in a thread (Litestar: sync_to_thread=True)."
        )


class ParameterError(UsageError):
    """The parameters do not fit the placeholders of a statement.

    ``sql`` is the statement, ``position`` the index in it of the place in question, None if there is no such place.
    """

    def __init__(self, what: str, sql: str, position: int | None = None) -> None:
        super().__init__(what, sql, position)
        self.what = what
        self.sql = sql
        self.position = position

    def __str__(self) -> str:
        if self.position is None:
            return f"{self.what}\n    {self.sql.strip()}"
        begin = self.sql.rfind("\n", 0, self.position) + 1
        end = self.sql.find("\n", self.position)
        line = self.sql[begin : len(self.sql) if end < 0 else end]
        return f"{self.what}\n    {line}\n    {' ' * (self.position - begin)}^"


class BlockingCallWarning(UserWarning):
    """A blocking session was called on the event loop's thread: nothing else runs meanwhile."""


class DatabaseSaidNo(TranseptError):  # noqa: N818 - the family's name
    """Work that was to be kept was not kept, or not surely."""


IN_SAVEPOINT = (
    "An error that the code caught has ended the transaction; to go on after such an error, run the statement inside a "
    "savepoint (a nested block or begin_nested())."
)
IN_BLOCK = (
    "Let the error leave the outer block, too; or make the inner one a savepoint, which is undone alone: "
    "transaction('nested') or unit_of_work()."
)


class CommitFailed(DatabaseSaidNo):
    """COMMIT would have kept nothing (or only a part), because the transaction had ended or been aborted before.

    ``database`` is the database's key, or the keys of several, ``reason`` what happened, ``advice`` what to do. The
    work has been rolled back.
    """

    def __init__(self, database: str, reason: str, advice: str = IN_SAVEPOINT) -> None:
        super().__init__(database, reason, advice)
        self.database = database
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        where = f" on database {self.database!r}" if self.database else ""
        return f"nothing was committed{where}: {self.reason}. {self.advice}".rstrip()


class CommitInDoubt(DatabaseSaidNo):
    """COMMIT was sent and its answer never came: the work is either kept or not.

    ``database`` is the database's key; ``__cause__`` is the driver's error. Look before doing it again.
    """

    def __init__(self, database: str) -> None:
        super().__init__(database)
        self.database = database

    def __str__(self) -> str:
        return (
            f"the connection to database {self.database!r} was lost between COMMIT and its answer: the work may or "
            "may not be kept. Look before you repeat it."
        )


class PartlyCommitted(DatabaseSaidNo):
    """Several databases were to commit, and a later one failed after an earlier one was kept.

    ``committed``, ``failed`` and ``rolled_back`` hold the keys; ``__cause__`` is the error of the one that failed.
    """

    def __init__(self, committed: Sequence[str], failed: str, rolled_back: Sequence[str] = ()) -> None:
        super().__init__(tuple(committed), failed, tuple(rolled_back))
        self.committed = tuple(committed)
        self.failed = failed
        self.rolled_back = tuple(rolled_back)

    def __str__(self) -> str:
        rest = f", and {_names(self.rolled_back)} was rolled back" if self.rolled_back else ""
        return f"{_names(self.committed)} committed, then {self.failed!r} failed to{rest}: put them right by hand."


class LoopTimeout(DatabaseSaidNo, TimeoutError):  # noqa: N818 - says what is so, as the rest of the family does
    """Plain code waited for the background loop, on which it uses async databases, and got no answer in time.

    ``what`` was waited for, ``seconds`` how long; ``held_at`` is the line of code that held the loop, None if nothing
    did. Answered 503 where nobody handles it.
    """

    def __init__(self, what: str, seconds: float, held_at: str | None = None) -> None:
        super().__init__(what, seconds, held_at)
        self.what = what
        self.seconds = seconds
        self.held_at = held_at

    def __str__(self) -> str:
        if self.held_at is None:
            why = "It was cancelled. Look at what it was waiting for, such as a lock in the database"
        else:
            why = f"The loop is held at {self.held_at}: await what is slow there, or make it a plain `def`"
        return f"no answer from {self.what} within {self.seconds:g} s. {why}; or allow more time with timeout=."


class NotFoundError(DatabaseSaidNo):
    """One row was asked for, and there is none."""


class MultipleResultsFoundError(DatabaseSaidNo):
    """One row was asked for, and there are several."""


class SQLError(DatabaseSaidNo):
    """A raw driver's error, in the one family that all drivers share; its own error is ``__cause__``.

    ``database`` is the database's key; ``code`` the SQLSTATE (PostgreSQL) or the vendor's number (MySQL, MariaDB,
    SQLite), None if the server gave none; ``message`` what the driver said; ``sql`` the statement, None where there
    is none. `retryable` says whether the same unit of work may succeed when it is done again from its start.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, database: str, code: str | int | None, message: str, sql: str | None = None) -> None:
        super().__init__(database, code, message, sql)
        self.database = database
        self.code = code
        self.message = message
        self.sql = sql

    def __str__(self) -> str:
        code = "" if self.code is None else f" [{self.code}]"
        sql = "" if self.sql is None else f"\n    {self.sql.strip()}"
        return f"database {self.database!r}: {self.message}{code}{sql}"


class IntegrityError(SQLError):
    """A constraint was violated."""


class UniqueViolationError(IntegrityError):
    """A key is there already."""


class ForeignKeyViolationError(IntegrityError):
    """What is referred to is not there, or what is referred to would go."""


class CheckViolationError(IntegrityError):
    """A CHECK or an exclusion constraint refused the row."""


class NotNullViolationError(IntegrityError):
    """NULL where none may be."""


class DataError(SQLError):
    """A value does not fit: too long, out of range, of another type."""


class ProgrammingError(SQLError):
    """The statement is wrong: its syntax, a table or column that is not there, a right that is missing."""


class OperationalError(SQLError):
    """The database could not do it now."""


class SerializationConflictError(OperationalError):
    """Another transaction came in between."""

    retryable = True


class DeadlockError(SerializationConflictError):
    """Two transactions waited for each other, and this one was chosen to give way."""


class LockTimeoutError(OperationalError):
    """A lock was not to be had in time."""

    retryable = True


class OperationCancelledError(OperationalError):
    """The statement was cancelled, or took longer than it may."""


class DatabaseUnavailable(OperationalError):  # noqa: N818 - says what is so, as the rest of the family does
    """The database cannot be reached, or the connection was lost. Answered 503 where nobody handles it."""

    retryable = True


class PoolTimeout(DatabaseUnavailable):
    """No connection of the pool became free in time.

    ``seconds`` is how long was waited; ``holders`` who holds the connections, each with the seconds since when.
    """

    def __init__(self, database: str, seconds: float, holders: Sequence[tuple[str, float]]) -> None:
        super().__init__(database, None, f"no connection became free within {seconds:g} s")
        self.seconds = seconds
        self.holders = tuple(holders)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.database, self.seconds, self.holders)

    def __str__(self) -> str:
        held = ", ".join(f"{who} (for {since:.1f} s)" for who, since in self.holders) or "nobody that is known"
        return (
            f"database {self.database!r}: {self.message}. The pool's connections are held by {held}. End transactions "
            "before slow work, or allow more connections in pool_config."
        )


def _names(keys: Iterable[str]) -> str:
    return ", ".join(repr(key) for key in keys)


def inside_a_block(what: str) -> UsageError:
    """The error for code that ends a transaction inside a block."""
    return UsageError(f"{what} inside a block, whose end decides what is kept: do it outside of the block.")


def unknown_value(setting: str, value: object, allowed: Iterable[str]) -> ImproperConfigurationError:
    """The error for a value that is not one of `allowed`: names the setting, the value and the nearest known one."""
    known = sorted(allowed)
    near = get_close_matches(str(value), known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return ImproperConfigurationError(f"{setting}={value!r} is not known.{hint} Allowed: {_names(known)}.")


NAMES_OF_A_DATABASE = ("database", "db", "dbname")


def unknown_option(owner: str, option: str, known: Iterable[str]) -> ImproperConfigurationError:
    """The error for an option that `owner` does not have: names it and the nearest known one."""
    names = sorted(known)
    same = [name for name in names if option in NAMES_OF_A_DATABASE and name in NAMES_OF_A_DATABASE]
    near = same or get_close_matches(str(option), names, n=1, cutoff=0.6)
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names[:10])}{more}."
    return ImproperConfigurationError(f"{owner} has no option {option!r}. {hint}")
