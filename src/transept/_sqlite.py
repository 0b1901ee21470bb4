"""SQLite as a web app needs it, for both families of databases.

Rule 1: foreign keys are enforced, a file is in WAL mode (readers and the writer do not stop each other) unless it is
read-only or cannot be switched right now, and who finds the database locked waits for a while.
Rule 2: a unit that may write begins with BEGIN IMMEDIATE. A deferred transaction that reads first and then writes fails
at once, without waiting, when another has written in between (SQLITE_BUSY_SNAPSHOT).
Rule 3: an in-memory database is one that all connections of the process share by its name, with real locks between
them, and it lives as long as one of them.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextvars import ContextVar

__all__ = ["MAY_WRITE", "begin_statement", "memory_name", "prepare"]

BUSY, READONLY = 5, 8

MAY_WRITE: ContextVar[bool] = ContextVar("transept_sqlite_may_write", default=False)

_numbers = itertools.count(1)


def prepare(execute: Callable[[str], object]) -> None:
    """Make a new connection what Rule 1 says; `execute` runs one statement on it.

    The file keeps its mode: who finds it in use leaves the switch to a later connection.
    """
    execute("PRAGMA foreign_keys = ON")
    try:
        execute("PRAGMA journal_mode = WAL")
    except Exception as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (BUSY, READONLY):
            raise


def begin_statement(may_write: bool) -> str:
    return "BEGIN IMMEDIATE" if may_write else "BEGIN"


def memory_name() -> str:
    """A new name for an in-memory database, for ``file:NAME?vfs=memdb``."""
    return f"/transept-{os.getpid()}-{next(_numbers)}"
