"""SQLite as a web app needs it, for both families of databases.

Rule 1: foreign keys are enforced, a file is in WAL mode (readers and the writer do not stop each other), and who finds
the database locked waits for a while.
Rule 2: a unit that may write begins with BEGIN IMMEDIATE. A deferred transaction that reads first and then writes fails
at once, without waiting, when another has written in between (SQLITE_BUSY_SNAPSHOT).
Rule 3: an in-memory database is one that all connections of the process share by its name, with real locks between
them, and it lives as long as one of them.
"""

from __future__ import annotations

import itertools
import os
from contextvars import ContextVar

__all__ = ["MAY_WRITE", "PRAGMAS", "begin_statement", "memory_name"]

PRAGMAS = ("PRAGMA foreign_keys = ON", "PRAGMA journal_mode = WAL")

MAY_WRITE: ContextVar[bool] = ContextVar("transept_sqlite_may_write", default=False)


_numbers = itertools.count(1)


def begin_statement(may_write: bool) -> str:
    return "BEGIN IMMEDIATE" if may_write else "BEGIN"


def memory_name() -> str:
    """A new name for an in-memory database, for ``file:NAME?vfs=memdb``."""
    return f"/transept-{os.getpid()}-{next(_numbers)}"
