"""SQLite: a file, and a database in memory."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from transept._sqlite import memory_name

SCHEMA = """
CREATE TABLE held (v INTEGER);
CREATE TABLE parent (id INTEGER PRIMARY KEY);
CREATE TABLE child (p INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
"""


class SQLiteFile:
    name = "sqlite"
    can = frozenset({"late", "slow"})

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.path = str(Path(self._folder.name, "contract.db"))
        self._look: sqlite3.Connection | None = None

    def reset(self) -> None:
        self.close()
        self.path = str(Path(self._folder.name, f"{memory_name()[1:]}.db"))
        self._look = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        self._look.executescript("PRAGMA journal_mode = WAL;" + SCHEMA)

    def close(self) -> None:
        if self._look is not None:
            self._look.close()
            self._look = None

    def url(self, driver: str, port: int | None = None) -> str:
        return f"sqlite+{driver}:///{self.path}"

    @property
    def options(self) -> dict[str, object]:
        return {"database": self.path}

    def held(self) -> list[int]:
        assert self._look is not None
        return [v for (v,) in self._look.execute("SELECT v FROM held ORDER BY v")]

    def open_transactions(self) -> int:
        assert self._look is not None
        try:
            self._look.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return 1
        self._look.execute("ROLLBACK")
        return 0

    def violation(self) -> list[str]:
        return ["INSERT INTO child VALUES (99)"]

    def slow(self) -> str:
        return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000000) SELECT max(i) FROM n"


class SQLiteMemory(SQLiteFile):
    name = "memory"

    def reset(self) -> None:
        self.close()
        self.path = f"file:{memory_name()}?vfs=memdb"
        self._look = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, uri=True, check_same_thread=False
        )
        self._look.executescript(SCHEMA)

    def url(self, driver: str, port: int | None = None) -> str:
        return f"sqlite+{driver}:///{self.path}&uri=true"

    @property
    def options(self) -> dict[str, object]:
        return {"database": self.path, "uri": True}
