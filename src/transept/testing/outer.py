"""The transaction around a test, and the savepoints in it that stand for the app's transactions.

Rule 1: the app's COMMIT is RELEASE, its ROLLBACK is ROLLBACK TO; one unit at a time, so they never overlap.
Rule 2: what a COMMIT would check is checked before the RELEASE, and raises the driver's own error: constraints that
are deferred. PostgreSQL is told to check them now and then begins anew with the mode that each was created with, as
after a COMMIT; SQLite lists the rows that refer to none. MySQL and MariaDB have none.
Rule 3: if a savepoint is gone, so is the transaction around it, and nothing goes on as if it were there.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from transept.testing.errors import SandboxError, SandboxLost

__all__ = ["Outer", "explain"]

Run = Callable[[str], Awaitable[Sequence[Sequence[Any]]]]

# In one statement, so in one round trip. The modes that a transaction sets end with it: those of the next unit are
# the initial ones. Schemas that this user may not use, and temporary ones of others, cannot be named.
POSTGRESQL_CHECK = """
DO $transept$
DECLARE deferred text;
BEGIN
    SET CONSTRAINTS ALL IMMEDIATE;
    SELECT string_agg(quote_ident(n.nspname) || '.' || quote_ident(c.conname), ', ') INTO deferred
    FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
    WHERE c.condeferred AND has_schema_privilege(n.oid, 'USAGE') AND NOT pg_is_other_temp_schema(n.oid);
    IF deferred IS NOT NULL THEN
        EXECUTE 'SET CONSTRAINTS ' || deferred || ' DEFERRED';
    END IF;
END
$transept$
"""


class Outer:
    """A transaction that is open for a whole test. `run` executes SQL on its connection."""

    def __init__(self, database: str, dialect: str, run: Run) -> None:
        self.database = database
        self.lost: str | None = None
        self._dialect = dialect
        self._run = run
        self._number = 0
        self._dangling: frozenset[tuple[Any, ...]] | None = None

    async def begun(self) -> None:
        """The transaction has been begun: take note of what is so already."""
        if self._dialect == "sqlite" and (await self._run("PRAGMA foreign_keys"))[0][0]:
            self._dangling = await self._dangling_rows()

    async def begin_part(self) -> str:
        """What the app takes for the beginning of a transaction. The name that ends it."""
        self._raise_if_lost()
        self._number += 1
        name = f"transept_unit_{self._number}"
        await self._run(f"SAVEPOINT {name}")
        return name

    async def keep_part(self, name: str) -> None:
        """What the app takes for a COMMIT."""
        self._raise_if_lost()
        await self._check()
        try:
            await self._run(f"RELEASE SAVEPOINT {name}")
        except Exception as error:
            await self._raise_if_gone(name, error)
            raise

    async def undo_part(self, name: str) -> None:
        """What the app takes for a ROLLBACK."""
        self._raise_if_lost()
        try:
            await self._run(f"ROLLBACK TO SAVEPOINT {name}")
            await self._run(f"RELEASE SAVEPOINT {name}")
        except Exception as error:
            raise self._gone(error) from error
        await self._forget_modes()

    async def _check(self) -> None:
        if self._dialect == "postgresql":
            await self._run(POSTGRESQL_CHECK)
        elif self._dangling is not None:
            if not (await self._dangling_rows()) <= self._dangling:
                error = sqlite3.IntegrityError("FOREIGN KEY constraint failed")
                error.sqlite_errorcode, error.sqlite_errorname = 787, "SQLITE_CONSTRAINT_FOREIGNKEY"
                raise error
            await self._forget_modes()

    async def _forget_modes(self) -> None:
        """SQLite switches this off at each COMMIT and ROLLBACK."""
        if self._dangling is not None:
            await self._run("PRAGMA defer_foreign_keys = OFF")

    async def _dangling_rows(self) -> frozenset[tuple[Any, ...]]:
        return frozenset(tuple(row) for row in await self._run("PRAGMA foreign_key_check"))

    async def _raise_if_gone(self, name: str, error: Exception) -> None:
        try:
            await self._run(f"ROLLBACK TO SAVEPOINT {name}")
        except Exception:
            raise self._gone(error) from error

    def _gone(self, error: Exception) -> SandboxLost:
        self.lost = str(error).strip().split("\n")[0] or type(error).__name__
        return SandboxLost(self.database, self.lost)

    def _raise_if_lost(self) -> None:
        if self.lost is not None:
            raise SandboxLost(self.database, self.lost)


def explain(database: str, error: Exception) -> None:
    """Raise what is behind an error with which the transaction did not begin, where that is known."""
    if "locked" in str(error):
        raise SandboxError(
            f"the sandbox of database {database!r} cannot begin ({error}). It holds SQLite's one write lock as long as "
            "it lasts, and somebody else has that: another database of this sandbox on the same file, or a connection "
            "of the test's own. Use one database for each file, and end other transactions first."
        ) from error
