"""Round trips to PostgreSQL that need not be made, because the server itself holds what they are for.

Rule 1: connections are read-only unless a transaction says otherwise, so a lone statement that looks like a read runs
without BEGIN and COMMIT: if it writes after all, through a view, a function or a policy, the server refuses it (25006),
and it runs again in a transaction that may write.
Rule 2: a connection is given back without being reset, if nothing of what its transaction ran can touch the session.
Rule 3: both only where the server vouches for the database: READ COMMITTED, and no code of its own (functions, views,
rules, policies, defaults, checks) in which one of the words stands by which a session is changed, or something is done
that cannot be undone. It is asked when it connects, again after a minute, and after each DDL of this process.
Rule 4: a statement in which such a word stands itself gets a transaction, and a reset after it.

No I/O here; the adapters ask what `PROOF` says.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from time import monotonic
from typing import Any
from uuid import UUID

import msgspec

from transept.sql.faults import Fault
from transept.sql.kinds import SESSION, Kind

__all__ = ["BEGIN", "NATIVES", "PROOF", "RESET", "Savings", "Session", "decode_json", "encode_json"]

NATIVES: frozenset[type] = frozenset({UUID, datetime, date, time, timedelta, Decimal, bool})

READ_ONLY = "25006"
BEGIN = "BEGIN READ WRITE"
RESET = "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL"
LASTS = 60.0

# As PostgreSQL writes it. What PL/pgSQL assigns with := is no variable of the session; nor is the SET of an UPDATE.
WORDS = "|".join(words.replace(r"\b", r"\y") for words in SESSION if words != ":=")
WORDS += r"|\y(set|reset|discard|load|prepare|deallocate|lock)\y"
UPDATES = r"\yupdate\y[^;]*?\yset\y"

PROOF = f"""
WITH code (text) AS (
    SELECT CASE WHEN l.lanname IN ('sql', 'plpgsql')
           THEN regexp_replace(coalesce(nullif(p.prosrc, ''), pg_get_functiondef(p.oid)), '{UPDATES}', '', 'gi')
           ELSE 'set_config' END
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.oid >= 16384 AND p.prokind <> 'a' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
    UNION ALL SELECT regexp_replace(pg_get_ruledef(oid), '{UPDATES}', '', 'gi')
    FROM pg_catalog.pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT concat(pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
    FROM pg_catalog.pg_policy
    UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_catalog.pg_attrdef
    UNION ALL SELECT pg_get_constraintdef(oid) FROM pg_catalog.pg_constraint WHERE contype = 'c' AND oid >= 16384
)
SELECT current_setting('default_transaction_isolation') = 'read committed'
   AND current_setting('default_transaction_read_only') = 'on'
   AND NOT EXISTS (SELECT FROM code WHERE text ~* '{WORDS}')
"""


class Savings:
    """What is saved on one database, as its config says; shared by its connections."""

    __slots__ = ("bare_reads", "ddl", "skip_reset")

    def __init__(self, *, bare_reads: bool, skip_reset: bool) -> None:
        self.bare_reads = bare_reads
        self.skip_reset = skip_reset
        self.ddl = 0  # how often this process has run something that may have changed the database's code

    def __bool__(self) -> bool:
        return self.bare_reads or self.skip_reset


class Session:
    """One connection: whether the server vouches for its database, and whether its session may have been changed."""

    __slots__ = ("_asked", "_ddl", "_savings", "_trusted", "touched", "used")

    def __init__(self, savings: Savings) -> None:
        self._savings = savings
        self._trusted = False
        self._asked = -LASTS
        self._ddl = -1
        self.touched = False
        self.used = False  # by anybody, since it was made

    def must_ask(self, clock: Callable[[], float] = monotonic) -> bool:
        """Whether `PROOF` is to be run before anything else is."""
        if not self._savings:
            return False
        return self._ddl != self._savings.ddl or clock() - self._asked > LASTS

    def answered(self, trusted: object, clock: Callable[[], float] = monotonic) -> None:
        """What the server said to `PROOF`."""
        self._trusted = bool(trusted)
        self._asked = clock()
        self._ddl = self._savings.ddl

    def runs_bare(self, kind: Kind) -> bool:
        return self._trusted and self._savings.bare_reads and kind.reads and not kind.session

    def ran(self, kind: Kind) -> None:
        """Take note of a statement."""
        if kind.session and kind.verb not in ("SAVEPOINT", "RELEASE", "ROLLBACK"):
            self.touch()

    def touch(self) -> None:
        """Something may have changed the session, or the code of the database."""
        self.touched = True
        self._savings.ddl += 1

    def needs_reset(self) -> bool:
        """Whether the connection is to be reset before somebody else has it; asked once."""
        touched, self.touched = self.touched, False
        return touched or not (self._trusted and self._savings.skip_reset)

    @staticmethod
    def refused_bare(fault: Fault) -> bool:
        return fault.code == READ_ONLY


def encode_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def decode_json(text: str | bytes) -> Any:
    return msgspec.json.decode(text)
