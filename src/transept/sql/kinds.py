"""What the text of a statement shows of what it does.

Rule 1: where it is not sure, the answer is the careful one: not a read, may touch the session.
Rule 2: words count where they are code; those that may touch the session count within quotes as well.

Nothing here does I/O.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from transept.sql.tokens import LONG, WORD, cut, is_comment, statements

__all__ = ["Kind", "kind_of"]

KEPT = 2048  # texts


class Kind(NamedTuple):
    """What the text of a statement shows. Functions may do more than their names tell: `reads` is no proof.

    `verb` is the first word in upper case, after WITH the one behind its queries; "" if there is none. `returns_rows`:
    it has rows to fetch. `reads`: it looks as if it changed and locked nothing. `session`: it may touch what outlives
    its transaction, or what cannot be undone. `several`: the text is more than one statement.
    """

    verb: str
    returns_rows: bool
    reads: bool
    session: bool
    several: bool


READS = frozenset({"SELECT", "VALUES", "TABLE", "SHOW", "EXPLAIN"})
WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})
MAIN = frozenset({"SELECT", "VALUES", "TABLE"}) | WRITES
WITH_ROWS = READS | {"WITH", "PRAGMA", "DESCRIBE", "DESC", "FETCH", "CALL", "EXECUTE"}
NOT_A_READ = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|INTO|ANALY[ZS]E|FOR\s+(?:SHARE|NO|KEY)|LOCK\s+IN)\b")
HINTS_OF_CHANGE = ("INSERT", "UPDATE", "DELETE", "MERGE", "INTO", "ANALY", "FOR", "LOCK")
RETURNING = re.compile(r"RETURNING(?<!\wRETURNING)\b")  # begins with plain characters: quick to look for
# What may outlive its transaction, or cannot be undone, where the verb does not tell. Also within quotes: a function
# may be called by a quoted name, and some functions run the SQL that they are given as text.
SESSION = (
    "set_config|setseed|set_limit|pg_settings",  # settings of the session; the view has a rule that sets them
    "read_only",  # whether a transaction is one: it would be seen
    "setval",  # no rollback takes a sequence back
    "advisory|get_lock|release_(?:all_)?lock",  # locks that are held until the session ends
    "notify|listen",
    r"\btemp(?:orary)?\b|pg_temp",  # SELECT INTO TEMP: a table of the session
    r"\blo_|lowrite",  # large objects: descriptors, imports, exports
    "pg_file|outfile|dumpfile",  # files, which know no rollback
    "load_extension",  # SQLite: into the connection
    ":=",  # MySQL: variables of the session
    "pg_(?:export_snapshot|logical|replication|create|drop|copy|switch|promote|rotate|stat_reset)",  # done at once
    "pg_(?:cancel|terminate|reload|log_)",  # other sessions, the server
    "dblink",  # a connection of its own
    r"\bexecute\b",  # EXPLAIN ANALYZE EXECUTE: a statement that is not to be seen here
    "(?:query|cursor)_to_xml|ts_stat|ts_rewrite|crosstab|connectby|xpath_table",  # these run SQL, perhaps a value
    r"\bu&",  # a name in escapes
)
SESSION_WORDS = re.compile("|".join(SESSION))
# Each match of the above holds one of these; to look for them costs a tenth.
SESSION_HINTS = (
    *("pg_", "set_", "setseed", "setval", "read_only", "advisory", "_lock", "notify", "listen", "temp", "lo_"),
    *("lowrite", "file", "load_", ":=", "dblink", "execute", "_to_xml", "ts_", "crosstab", "connectby", "xpath_", "u&"),
)


def kind_of(sql: str, dialect: str) -> Kind:
    """What the text of a statement shows, kept for texts that come again."""
    return _kind(sql, dialect) if len(sql) <= LONG else _kind.__wrapped__(sql, dialect)


@lru_cache(maxsize=KEPT)
def _kind(sql: str, dialect: str) -> Kind:
    parts = cut(sql, dialect)
    code = " ".join(parts[::2]).upper()
    first = WORD.search(code)
    verb = first[0] if first else ""
    several = ";" in parts and len(statements(parts)) > 1
    returning = "RETURNING" in code and RETURNING.search(code) is not None
    if verb == "WITH":
        outer = _outer_words(parts)
        verb = next((word for word in outer if word in MAIN), verb)
        returning = "RETURNING" in outer
    reads = verb in READS and not several and not _changes(code)
    session = (verb not in READS and verb not in WRITES) or several or _is_of_session(sql, parts)
    return Kind(verb, returning or verb in WITH_ROWS, reads, session, several)


def _changes(code: str) -> bool:
    for hint in HINTS_OF_CHANGE:
        if hint in code:
            return NOT_A_READ.search(code) is not None
    return False


def _is_of_session(sql: str, parts: list[str]) -> bool:
    text = sql.lower()
    for hint in SESSION_HINTS:
        if hint in text:
            break
    else:
        return False
    text = "".join([" " if i % 2 and is_comment(part) else part for i, part in enumerate(parts)])
    return SESSION_WORDS.search(text.lower()) is not None


def _outer_words(parts: list[str]) -> list[str]:
    """The words outside of all parentheses but those around the whole."""
    depth, words = 0, list[str]()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            words += WORD.findall(part.upper()) if depth <= 0 else ()
        elif part == "(":
            depth += bool(words)
        elif part == ")":
            depth -= 1
    return words
