"""Which error of Transept a raw driver's error is, and what became of the connection and of the transaction.

Rule 1: a code decides, the SQLSTATE or the vendor's number: exact first, then its class. Only errors that a driver
makes without any code are told apart by their class or by the driver's own text, which no server translates.
Rule 2: a code that is in no table is `SQLError` itself; a server's answer always has a code, so an error without one
means that there was no answer.
Rule 3: a COMMIT that was answered with an error failed; one that got no answer is in doubt, unless it was never sent.
Rule 4: what is neither the driver's error nor the network's is nobody's fault here, and passes through unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transept.errors import (
    CheckViolationError,
    DatabaseUnavailable,
    DataError,
    DeadlockError,
    ForeignKeyViolationError,
    IntegrityError,
    LockTimeoutError,
    NotNullViolationError,
    OperationalError,
    OperationCancelledError,
    ProgrammingError,
    SerializationConflictError,
    SQLError,
    UniqueViolationError,
)

__all__ = [
    "Fault",
    "by_mysql",
    "by_sqlite",
    "by_sqlstate",
    "of_asyncpg",
    "of_mysql",
    "of_psycopg",
    "of_sqlite",
    "sql_error",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a driver's error means.

    ``kind`` is the class to raise, ``code`` the SQLSTATE or the vendor's number. ``lost``: nothing more can be done on
    the connection. ``ended``: the server has ended the whole transaction, and no savepoint brings it back; False where
    the code alone does not tell, as on PostgreSQL and SQLite, whose drivers are asked. ``in_doubt``: if a COMMIT raised
    it, the COMMIT may have been carried out all the same.
    """

    kind: type[SQLError]
    code: str | int | None = None
    lost: bool = False
    ended: bool = False
    in_doubt: bool = False


def _kinds(*groups: tuple[type[SQLError], Iterable[int]]) -> Mapping[int, type[SQLError]]:
    return {number: kind for kind, numbers in groups for number in numbers}


# Wrong passwords, rights and names of databases are wrong settings, which no retry heals: ProgrammingError, not
# DatabaseUnavailable. (psycopg hides the code when it connects, and can only say that the database is unavailable.)
SQLSTATES: Mapping[str, type[SQLError]] = {
    "23001": ForeignKeyViolationError,  # ON DELETE RESTRICT, since PostgreSQL 18
    "23502": NotNullViolationError,
    "23503": ForeignKeyViolationError,
    "23505": UniqueViolationError,
    "23514": CheckViolationError,
    "23P01": CheckViolationError,
    "25P03": DatabaseUnavailable,  # these two end the session, not the transaction alone
    "25P04": DatabaseUnavailable,
    "40002": IntegrityError,
    "40003": DatabaseUnavailable,
    "40P01": DeadlockError,
    "44000": CheckViolationError,  # WITH CHECK OPTION
    "53300": DatabaseUnavailable,
    "55P03": LockTimeoutError,
    "57014": OperationCancelledError,
    "57P01": DatabaseUnavailable,
    "57P02": DatabaseUnavailable,
    "57P03": DatabaseUnavailable,
    "57P04": DatabaseUnavailable,
    "57P05": DatabaseUnavailable,
}
SQLSTATE_CLASSES: Mapping[str, type[SQLError]] = {
    "08": DatabaseUnavailable,
    "22": DataError,
    "23": IntegrityError,
    "40": SerializationConflictError,
    **dict.fromkeys(("03", "0A", "0L", "0P", "20", "21", "24", "28", "2B", "2D"), ProgrammingError),
    **dict.fromkeys(("34", "3B", "3D", "3F", "42"), ProgrammingError),
    **dict.fromkeys(("25", "26", "53", "54", "55", "57", "58", "F0", "HV", "XX"), OperationalError),
}
UNKNOWN_OUTCOME = "40003"
PROTOCOL_VIOLATION = "08P01"
SESSION_ENDS = frozenset({"25P03", "25P04", "57P01", "57P02", "57P03", "57P04", "57P05"})
FATAL = frozenset({"FATAL", "PANIC"})

MYSQL = _kinds(
    (UniqueViolationError, (1022, 1062, 1557, 1586, 1761, 1762, 1859)),
    (ForeignKeyViolationError, (1216, 1217, 1451, 1452)),
    (CheckViolationError, (1369, 3819, 4025)),
    (NotNullViolationError, (1048, 1263, 1364)),
    (DataError, (1153, 1264, 1265, 1292, 1300, 1365, 1366, 1367, 1406, 1411, 1441, 1690, 3140, 3141)),
    (ProgrammingError, (1044, 1045, 1049, 1052, 1054, 1064, 1130, 1136, 1146, 1193, 1305, 1698, 2014, 2059, 2061)),
    (LockTimeoutError, (1205, 3572)),
    (DeadlockError, (1213, 1614)),
    (SerializationConflictError, (1020,)),
    (OperationCancelledError, (1317, 1969, 3024)),
    (OperationalError, (1021, 1037, 1041, 1114, 1180, 1206, 1290, 1792, 1836)),
    # 1040, 1203, 1226 too many connections, 1047 Galera without a quorum, 1053 and 1077 to 1080 shutting down, 1927 and
    # 4031 ended by the server, 3032 and 3168 offline.
    (DatabaseUnavailable, (0, 1040, 1047, 1053, 1077, 1078, 1079, 1080, 1203, 1226, 1927, 3032, 3168, 4031)),
    (DatabaseUnavailable, (1152, 1158, 1159, 1160, 1161, 1184)),
)
MYSQL_LOST = frozenset({0, 1053, 1077, 1078, 1079, 1080, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 3032, 3168, 4031})
MYSQL_ENDS = frozenset({1020, 1180, 1213, 1614})
MYSQL_NEVER_SENT = frozenset({0, 2006})

SQLITE = _kinds(
    (UniqueViolationError, (1555, 2067, 2579)),  # of a primary key, of another one, of the rowid
    (ForeignKeyViolationError, (787,)),
    (CheckViolationError, (275,)),
    (NotNullViolationError, (1299,)),
    (IntegrityError, (19,)),
    (DataError, (18, 20, 3091)),  # too big, mismatch, the type of a STRICT table
    (ProgrammingError, (1, 3, 21, 23, 25)),  # error, perm, misuse, auth, range
    (SerializationConflictError, (517,)),
    (LockTimeoutError, (5, 6, 15)),
    (OperationCancelledError, (9,)),
    (DatabaseUnavailable, (14,)),
    # What follows is not cured by another connection: I/O errors, a full disk, a damaged file, read-only.
    (OperationalError, (2, 4, 7, 8, 10, 11, 13, 16, 17, 22, 24, 26)),
)
SQLITE_CLOSED = frozenset({"Cannot operate on a closed database.", "no active connection", "Connection closed"})
SQLITE_TOO_LARGE = "Python int too large to convert to SQLite INTEGER"

# A pool lets go of a connection when it is lost, and of none else that is in use.
ASYNCPG_LET_GO = "released back to the pool"
ASYNCPG_CLOSED = ("is closed", "is closing", ASYNCPG_LET_GO)
PSYCOPG_CLOSED = "the connection is closed"
ASYNCPG = "asyncpg.exceptions._base."
UNANSWERED = Fault(DatabaseUnavailable, lost=True, in_doubt=True)


def by_sqlstate(code: str | None) -> type[SQLError]:
    """The class of a SQLSTATE; DatabaseUnavailable without one, for no server answered."""
    if code is None:
        return DatabaseUnavailable
    return SQLSTATES.get(code) or SQLSTATE_CLASSES.get(code[:2], SQLError)


def by_mysql(number: int | None) -> type[SQLError]:
    """The class of an error number of MySQL, MariaDB or their clients; DatabaseUnavailable without one."""
    if number is None:
        return DatabaseUnavailable
    return MYSQL.get(number) or (DatabaseUnavailable if _of_client(number) else SQLError)


def by_sqlite(code: int | None) -> type[SQLError]:
    """The class of a result code of SQLite, extended or not; ProgrammingError without one, for SQLite was not asked."""
    if code is None:
        return ProgrammingError
    return SQLITE.get(code) or SQLITE.get(code & 0xFF, SQLError)


def of_asyncpg(error: BaseException) -> Fault | None:
    """What an error means that asyncpg raised; None: it is not of the driver nor of the network."""
    if _is(error, ASYNCPG + "PostgresError"):
        # "connection was closed in the middle of operation" (08003) is asyncpg's; the server's own words are its cause.
        cause = error.__cause__
        if cause is None or not _is(cause, ASYNCPG + "PostgresError"):
            return _answered(error)
        told, own = _answered(cause), _answered(error)
        return Fault(told.kind, told.code, lost=told.lost or own.lost, in_doubt=told.in_doubt or own.in_doubt)
    if _is(error, ASYNCPG + "InterfaceError"):
        return _refused_by_asyncpg(error)
    if _is(error, ASYNCPG + "OutdatedSchemaCacheError"):
        return Fault(OperationalError)
    if _is(error, ASYNCPG + "InternalClientError"):
        return UNANSWERED
    if isinstance(error, TimeoutError) and error.errno is None:
        # A timer of asyncpg's. The one of a statement sets the error, and cancels the statement on the server; the one
        # of a connect (or of the pool) cancels the task's own wait.
        connecting = type(error.__cause__).__name__ == "CancelledError"
        return Fault(DatabaseUnavailable if connecting else OperationCancelledError, in_doubt=True)
    return _of_network(error)


def of_psycopg(error: BaseException) -> Fault | None:
    """What an error means that psycopg (or its pool) raised; None: it is not of the driver nor of the network."""
    if not _is(error, "psycopg.Error"):
        return _of_network(error)
    if _sqlstate(error) is not None:
        return _answered(error)
    if _is(error, "psycopg.OperationalError"):
        return Fault(DatabaseUnavailable, lost=True, in_doubt=str(error) != PSYCOPG_CLOSED)
    if _is(error, "psycopg.InternalError"):
        return Fault(OperationalError, in_doubt=True)
    return Fault(DataError if _is(error, "psycopg.DataError") else ProgrammingError)


def of_mysql(error: BaseException) -> Fault | None:
    """What an error means that PyMySQL or asyncmy raised; None: it is not of the driver nor of the network."""
    module = next((name for name in ("pymysql.err.", "asyncmy.errors.") if _is(error, name + "MySQLError")), None)
    if module is None:
        return _of_network(error)
    first = error.args[0] if error.args else None
    number = first if isinstance(first, int) else None
    if number is None:
        return _misused(error, module) or UNANSWERED
    kind = by_mysql(number)
    if kind is SQLError:  # the server knows more numbers than the table: its class may do
        kind = by_sqlstate(getattr(error, "sqlstate", None) or "HY000")
    return Fault(
        kind,
        number or None,
        lost=number in MYSQL_LOST or (kind is DatabaseUnavailable and _of_client(number)),
        ended=number in MYSQL_ENDS,
        in_doubt=_of_client(number) and number not in MYSQL_NEVER_SENT,
    )


def of_sqlite(error: BaseException) -> Fault | None:
    """What an error means that sqlite3 or aiosqlite raised; None: it is not of the driver."""
    by_driver = _is(error, "sqlite3.Error")
    if (by_driver or type(error) is ValueError) and str(error) in SQLITE_CLOSED:
        return Fault(DatabaseUnavailable, lost=True)
    if type(error) is OverflowError and str(error) == SQLITE_TOO_LARGE:
        return Fault(DataError)
    if not by_driver:
        return None
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return Fault(by_sqlite(code), code)


def sql_error(fault: Fault, error: BaseException, database: str, sql: str | None) -> SQLError:
    """The error to be raised ``from error``: it says the first line of what the driver said.

    The lines below it are left out, for they may hold the values of a row.
    """
    arguments = error.args
    said = str(arguments[1] if len(arguments) > 1 and isinstance(arguments[0], int) else error).strip()
    if fault.lost and said.endswith(ASYNCPG_LET_GO):
        said = "the connection was lost"
    message = said.split("\n", 1)[0] or ("the connection is closed" if fault.lost else type(error).__name__)
    return fault.kind(database, fault.code, message, sql)


def _answered(error: BaseException) -> Fault:
    """What PostgreSQL answered, or said last; or asyncpg in its name, which then gives no severity."""
    code = _sqlstate(error)
    said = getattr(error, "diag", None)
    severity = getattr(said, "severity_nonlocalized", None) or getattr(error, "severity_en", None)
    if code == PROTOCOL_VIOLATION and severity == "ERROR":
        return Fault(ProgrammingError, code)  # such as a number of values that the statement does not have
    broken = code is None or (code.startswith("08") and severity != "ERROR")
    return Fault(
        by_sqlstate(code),
        code,
        lost=broken or code in SESSION_ENDS or severity in FATAL,
        in_doubt=broken or code == UNKNOWN_OUTCOME,
    )


def _refused_by_asyncpg(error: BaseException) -> Fault:
    """What asyncpg refused to send."""
    if _is(error, ASYNCPG + "DataError"):
        return Fault(DataError)
    if str(error).endswith(ASYNCPG_CLOSED):
        return Fault(DatabaseUnavailable, lost=True)
    return Fault(ProgrammingError)


def _misused(error: BaseException, module: str) -> Fault | None:
    if _is(error, module + "DataError"):
        return Fault(DataError)
    misused = _is(error, module + "ProgrammingError") or _is(error, module + "NotSupportedError")
    return Fault(ProgrammingError) if misused else None


def _of_network(error: BaseException) -> Fault | None:
    return UNANSWERED if isinstance(error, OSError | EOFError) else None


def _of_client(number: int) -> bool:
    """MySQL's numbers that the client makes, not the server."""
    return 2000 <= number < 3000


def _sqlstate(error: BaseException) -> str | None:
    code: str | None = getattr(error, "sqlstate", None)
    return code


def _is(error: BaseException, name: str) -> bool:
    """Whether the class of that full name is among the error's; no driver has to be imported to ask."""
    return any(f"{cls.__module__}.{cls.__qualname__}" == name for cls in type(error).__mro__)
