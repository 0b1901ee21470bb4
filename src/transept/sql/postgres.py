"""Round trips to PostgreSQL that need not be made, because the server itself holds what they are for.

Rule 1: connections are read-only unless a transaction says otherwise, so a lone statement that looks like a read runs
without BEGIN and COMMIT: if it writes after all, through a view, a function or a policy, the server refuses it (25006),
and it runs again in a transaction that may write.
Rule 2: a connection is given back without being reset, if nothing of what its transaction ran can touch the session.
Rule 3: both only where the server vouches for the database: no code of its own in which something is called or said
that changes a session, cannot be undone, or hides that a write was refused. It is asked at first, again after
a minute, and after each DDL of this process, once that is committed. No saving is older than that answer.
Rule 4: a statement in which such a word stands itself gets a transaction, and a reset after it.

No I/O here: `vouched` asks with what the adapters give it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from time import monotonic
from typing import Any, Protocol, TypeVar
from uuid import UUID

import msgspec

from transept.config import checked
from transept.errors import ImproperConfigurationError
from transept.sql.faults import Fault
from transept.sql.kinds import READS, SESSION, SESSION_HINTS, WRITES, Kind

__all__ = [
    "BEGIN",
    "DECLARED",
    "NATIVES",
    "PROOF",
    "READ_ONLY",
    "RESET",
    "WHO_AND_TEMP",
    "Savings",
    "Session",
    "SessionLink",
    "decode_json",
    "encode_json",
    "pool_sizes",
    "port_checked",
    "url_without_driver",
    "vouched",
]

L = TypeVar("L", bound="Asked")

NATIVES: frozenset[type] = frozenset({UUID, datetime, date, time, timedelta, Decimal, bool})

READ_ONLY = "default_transaction_read_only"  # the setting
WRITE_REFUSED = "25006"
BEGIN = "BEGIN READ WRITE"
WHO_AND_TEMP = "RESET SESSION AUTHORIZATION; RESET ROLE; DISCARD TEMP"  # which RESET ALL leaves as they are
RESET = f"SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL; {WHO_AND_TEMP}"
LASTS = 60.0
PAUSE = 1.0  # at least, between two proofs on one connection: where DDL is daily work, the proof must not be

DECLARED = frozenset({"SELECT", "VALUES", "TABLE"})  # of these the server keeps a cursor
DRIVER_IN_SCHEME = re.compile(r"^(postgres(?:ql)?)\+\w+://")
# What the answer to PROOF is the sum of.
CODE, BARE, NO_WRITES = 1, 2, 4

# Statements that may touch the session, but not the code of the database.
NO_DDL = READS | WRITES | {"SET", "RESET", "NOTIFY", "LISTEN", "UNLISTEN", "LOCK", "FETCH", "CLOSE"}

# As PostgreSQL writes it. What PL/pgSQL assigns with := is no variable of the session.
NAMES = "|".join(words.replace(r"\b", r"\y") for words in SESSION if words != ":=")
HINTS = " OR ".join(f"strpos(text, '{hint}') > 0" for hint in SESSION_HINTS if hint != ":=")
# A handler for all errors also hides that a write was refused: what it does instead must not happen.
VERBS = r"\y(set|reset|discard|load|prepare|deallocate|lock|others|invalid_transaction_state|2500[06])\y"
# The SET of an UPDATE is none of these. After the words FOR UPDATE there may be one that is.
NAME = r'(?!(loop|then|else|begin)\y)[\w$."]+'
UPDATES = rf"\yupdate\s+(only\s+)?{NAME}(\s+(as\s+)?{NAME})?\s+set\y|\y(do|then)\s+update\s+set\y"

SETTINGS = f"""CASE
    WHEN current_setting('{READ_ONLY}') = 'on' AND pg_my_temp_schema() = 0
     AND current_setting('default_transaction_isolation') = 'read committed' THEN {BARE} ELSE 0 END
    + CASE WHEN pg_is_in_recovery() OR EXISTS (
        SELECT FROM pg_catalog.pg_db_role_setting
        WHERE setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
          AND setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))
          AND array_to_string(setconfig, ' ') ~ '{READ_ONLY}=(on|true|yes|1)')
      THEN {NO_WRITES} ELSE 0 END"""

# Views, rules, policies, defaults and so on are looked at as they are stored, with the OIDs of what they call: to write
# them out would take locks on their tables, and wait for whoever alters one. `to_jsonb`: before PostgreSQL 14 there is
# no such column. A foreign table is a connection to somewhere else, which does not know that this one only reads.
PROOF = f"""
WITH own AS MATERIALIZED (
    SELECT p.*, l.lanname, lower(p.prosrc) AS text
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE p.oid >= 16384 AND p.prokind <> 'a' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_depend d
        WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
), trees (tree) AS MATERIALIZED (
    SELECT ev_action::text FROM pg_catalog.pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT ev_qual::text FROM pg_catalog.pg_rewrite WHERE oid >= 16384
    UNION ALL SELECT concat(polqual::text, polwithcheck::text) FROM pg_catalog.pg_policy
    UNION ALL SELECT adbin::text FROM pg_catalog.pg_attrdef
    UNION ALL SELECT conbin::text FROM pg_catalog.pg_constraint WHERE contype = 'c' AND oid >= 16384
    UNION ALL SELECT typdefaultbin::text FROM pg_catalog.pg_type WHERE oid >= 16384
    UNION ALL SELECT tgqual::text FROM pg_catalog.pg_trigger
    UNION ALL SELECT proargdefaults::text FROM own
    UNION ALL SELECT to_jsonb(own) ->> 'prosqlbody' FROM own WHERE prosrc = ''
), called (oid) AS (
    SELECT DISTINCT split_part(part, ' ', 1) FROM trees, unnest(string_to_array(tree, 'funcid ')) AS parts (part)
    UNION SELECT oprcode::oid::text FROM pg_catalog.pg_operator WHERE oid >= 16384
    UNION SELECT castfunc::text FROM pg_catalog.pg_cast WHERE oid >= 16384
    UNION SELECT unnest(
        array[aggtransfn, aggfinalfn, aggcombinefn, aggmtransfn, aggminvtransfn, aggmfinalfn]::oid[])::text
    FROM pg_catalog.pg_aggregate WHERE aggfnoid >= 16384
), code AS (
    SELECT FROM pg_catalog.pg_foreign_table
    UNION ALL SELECT FROM called JOIN pg_catalog.pg_proc p ON p.oid::text = called.oid WHERE p.proname ~ $w${NAMES}$w$
    UNION ALL SELECT FROM trees WHERE strpos(tree, concat(':relid ', 'pg_catalog.pg_settings'::regclass::oid, ' ')) > 0
    UNION ALL SELECT FROM own WHERE lanname NOT IN ('sql', 'plpgsql')
        OR ({HINTS}) AND text ~ $w${NAMES}$w$
        OR text ~ $w${VERBS}$w$ AND regexp_replace(text, $w${UPDATES}$w$, '', 'g') ~ $w${VERBS}$w$
)
SELECT CASE WHEN current_setting('standard_conforming_strings') = 'on' AND NOT EXISTS (SELECT FROM code)
       THEN {CODE} ELSE 0 END + {SETTINGS}
"""
SETTINGS_ALONE = f"""
SELECT CASE WHEN current_setting('standard_conforming_strings') = 'on' THEN {CODE} ELSE 0 END + {SETTINGS}
"""


logger = logging.getLogger("transept")


class Savings:
    """What is saved on one database, as its config says; shared by its connections."""

    __slots__ = ("bare_reads", "clock", "ddl", "proved", "skip_reset")

    def __init__(self, *, bare_reads: bool, skip_reset: bool, clock: Callable[[], float] = monotonic) -> None:
        self.bare_reads = bare_reads
        self.skip_reset = skip_reset
        self.clock = clock
        self.ddl = 0  # how often this process has run something that may have changed the database's code
        self.proved: tuple[int, float] | None = None  # the `ddl` and the time of the proof that holds for the code

    def __bool__(self) -> bool:
        return self.bare_reads or self.skip_reset

    def hold(self) -> bool:
        """Whether the server has vouched for the database's code, and that still stands."""
        return self.proved is not None and self.proved[0] == self.ddl and self.clock() - self.proved[1] <= LASTS


class Session:
    """One connection: what the server vouches for, and whether its session may have been changed.

    What it says of the database's code holds for all connections. Each is asked about its settings, as they differ
    between connections that were made before and after a change of them.
    """

    __slots__ = ("_altered", "_answer", "_asked", "_savings", "_whole", "touched", "used")

    def __init__(self, savings: Savings) -> None:
        self._savings = savings
        self._answer = 0
        self._asked: tuple[int, float] | None = None  # as `Savings.proved`
        self._whole = True
        self._altered = False
        self.touched = False
        self.used = False  # by anybody, since it was made

    def must_ask(self) -> bool:
        """Whether `proof` is to be run now, before anything else is."""
        savings = self._savings
        if not savings or self._holds():
            return False
        now = savings.clock()
        if self._asked is not None:
            ddl, then = self._asked
            if now - then <= (LASTS if ddl == savings.ddl else PAUSE):
                return False
        self._whole = not savings.hold()
        # what changes while the server looks counts as not seen
        self._asked = (savings.ddl, now)
        return True

    @property
    def proof(self) -> str:
        """`PROOF`; or less, if the server has just been asked about the database's code."""
        return PROOF if self._whole else SETTINGS_ALONE

    def answered(self, answer: object) -> None:
        """What the server said; None if it said nothing that can be used."""
        self._answer = answer if isinstance(answer, int) else 0
        if self._whole:
            self._savings.proved = self._asked if self._answer & CODE else None

    @property
    def begin(self) -> str:
        """How a transaction begins: with READ WRITE only where they could write without us as well."""
        return BEGIN if self._savings.bare_reads and not self._answer & NO_WRITES else "BEGIN"

    def runs_bare(self, kind: Kind) -> bool:
        if not (kind.reads and self._savings.bare_reads and self._answer & BARE):
            return False
        return not kind.session and not self.touched and self._holds()

    def ran(self, kind: Kind) -> None:
        """Take note of a statement."""
        if kind.session and kind.verb not in ("SAVEPOINT", "RELEASE", "ROLLBACK"):
            if kind.verb in NO_DDL and not kind.several:
                self.touched = True
            else:
                self.touch()

    def touch(self) -> None:
        """Something may have changed the session, or the code of the database."""
        self.touched = self._altered = True
        self._savings.ddl += 1

    def needs_reset(self) -> bool:
        """Whether the connection is to be reset before somebody else has it; asked once, after its transaction."""
        if self._altered:
            self._savings.ddl += 1  # now it is committed, and seen by all
        touched, self.touched, self._altered = self.touched, False, False
        return touched or not (self._savings.skip_reset and self._holds())

    def _holds(self) -> bool:
        return bool(self._answer & CODE) and self._savings.hold()

    @staticmethod
    def refused_bare(fault: Fault) -> bool:
        return fault.code == WRITE_REFUSED


class Asked(Protocol):
    """A connection in use that may be asked what the server vouches for."""

    @property
    def session(self) -> Session: ...

    @property
    def fresh(self) -> bool: ...

    async def ask(self, sql: str) -> Any:
        """The only value of a query."""
        ...

    async def drop(self) -> None: ...


async def vouched(
    take: Callable[[str], Awaitable[L]], holder: str, *, fault_of: Callable[[BaseException], Fault | None], key: str
) -> L:
    """What `take` gives, after asking what the server vouches for, if it is time to.

    A connection that turns out to have died in the pool is replaced by another.
    """
    while True:
        link = await take(holder)
        session = link.session
        if not session.must_ask():
            return link
        try:
            session.answered(await link.ask(session.proof))
            return link
        except BaseException as error:
            fault = fault_of(error)
            if fault is None or fault.lost:
                await link.drop()
                if fault is None or link.fresh:
                    raise
                continue
            session.answered(None)
            logger.warning("database %r: no round trips are saved: %r", key, error)
            return link


# What both drivers are told in the same words.


def pool_sizes(owner: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """How many connections a pool keeps, and how many it has at most: 0 and 10 unless its config says otherwise.

    Raises:
        ImproperConfigurationError: it says something else than whole numbers that fit together.
    """
    smallest = _size(owner, "min_size", options.get("min_size", 0), at_least=0)
    largest = options.get("max_size")
    largest = max(10, smallest) if largest is None else _size(owner, "max_size", largest, at_least=1)
    if smallest > largest:
        raise ImproperConfigurationError(
            f"{owner}: pool_config['min_size']={smallest}: at most max_size={largest} connections are allowed."
        )
    return smallest, largest


def port_checked(owner: str, port: Any) -> None:
    """Refuse what is no port; several are a list, or a text with commas."""
    ports = port if isinstance(port, list | tuple) else str(port or "").split(",")
    if isinstance(port, bool) or not all(str(one).strip().isdecimal() or one in ("", None) for one in ports):
        raise ImproperConfigurationError(
            f"{owner}: pool_config['port']={port!r}: a whole number is needed, such as 5432."
        )


def url_without_driver(owner: str, setting: str, url: Any) -> str:
    """Without the driver in its scheme, as SQLAlchemy's URLs have it."""
    checked(f"pool_config[{setting!r}]", url, str, owner)
    return DRIVER_IN_SCHEME.sub(r"\1://", url)


def _size(owner: str, setting: str, value: Any, *, at_least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ImproperConfigurationError(
            f"{owner}: pool_config[{setting!r}]={value!r}: a whole number from {at_least} is needed."
        )
    return value


def encode_json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def decode_json(text: str | bytes) -> Any:
    return msgspec.json.decode(text)


class SessionLink:
    """What is the same for a connection in use, whichever driver it is of."""

    __slots__ = ("session",)

    session: Session

    def runs_bare(self, kind: Kind) -> bool:
        return self.session.runs_bare(kind)

    def refused_bare(self, fault: Fault) -> bool:
        return self.session.refused_bare(fault)

    async def ended_by(self, fault: Fault) -> bool:
        """A transaction is aborted until a savepoint brings it back; `gone` says so."""
        return False
