"""SQLite: a file, and a database in memory."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transept._sqlite import memory_name

LOCKED = [-1]

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE held (v INTEGER);
CREATE TABLE parent (id INTEGER PRIMARY KEY);
CREATE TABLE child (p INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
"""


class SQLiteFile:
    name = "sqlite"
    can = frozenset({"late", "slow", "ends", "peek"})

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = self._new_path()
        self._look = sqlite3.connect(timeout=0, isolation_level=None, check_same_thread=False, **self.options)
        self._look.executescript(SCHEMA)

    def _new_path(self) -> str:
        return str(Path(self._folder.name, "contract.db"))

    def reset(self) -> None:
        self._look.executescript("DELETE FROM child; DELETE FROM held")

    def close(self) -> None:
        self._look.close()
        self._folder.cleanup()

    def url(self, driver: str, port: int | None = None) -> str:
        return f"sqlite+{driver}:///{self.path}"

    @property
    def options(self) -> dict[str, Any]:
        return {"database": self.path}

    def held(self) -> list[int]:
        return [v for (v,) in self._look.execute("SELECT v FROM held ORDER BY v")]

    def open_transactions(self) -> int:
        try:
            self._look.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return 1
        self._look.execute("ROLLBACK")
        return 0

    def violation(self) -> list[str]:
        return ["INSERT INTO child VALUES (99)"]

    def ending(self) -> Iterator[str]:
        yield "INSERT INTO parent VALUES (1)"
        yield "INSERT OR ROLLBACK INTO parent VALUES (1)"

    def slow(self) -> str:
        return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000) SELECT max(i) FROM n"


class SQLiteMemory(SQLiteFile):
    """A writer shuts readers out, so nobody can look while a transaction that wrote is open."""

    name = "memory"
    can = SQLiteFile.can - {"peek"}

    def _new_path(self) -> str:
        return f"file:{memory_name()}?vfs=memdb"

    def url(self, driver: str, port: int | None = None) -> str:
        return f"sqlite+{driver}:///{self.path}&uri=true"

    @property
    def options(self) -> dict[str, Any]:
        return {"database": self.path, "uri": True}

    def held(self) -> list[int]:
        try:
            return super().held()
        except sqlite3.OperationalError:
            return LOCKED
